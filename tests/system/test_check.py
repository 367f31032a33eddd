"""`kmsd check` on real parts: a SoftHSM token, an STI-PA and STI-CA on HTTPS, files on disk."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from kmsd import check as checks
from kmsd import settings
from kmsd.check import Finding, Level, check
from kmsd.hsm import Hsm, new_key_id
from kmsd.keyring import KeyringWriter
from kmsd.lab import Lab, running_lab
from kmsd.model import Active, BirthRecord, Certificate, Credential
from kmsd.ring import Entry
from kmsd.store import Store
from tests.softhsm import make_token, pin_of


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> settings.Hsm:
    return make_token(tmp_path_factory.mktemp("token"))


@dataclass
class Site:
    """An installation in a folder: its kmsd.toml as a table, to be spoilt by a test."""

    folder: Path
    table: dict[str, dict[str, object]] = field(default_factory=dict)

    async def check(self, limit: float = 30.0, ahead: float = 0.0) -> list[Finding]:
        file = self.folder / "kmsd.toml"
        file.write_text("\n".join(_toml(self.table)))
        clock = lambda: time.time() + ahead  # noqa: E731
        return [one async for one in check(file, clock=clock, limit=limit)]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder}/state/kmsd.db"


def _toml(table: dict[str, dict[str, object]]) -> Iterator[str]:
    for name, values in table.items():
        if name:
            yield f"[{name}]"
        for key, value in values.items():
            yield f"{key} = {_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    return msgspec.json.encode(value).decode()


@pytest.fixture
def site(tmp_path: Path, lab: Lab, token: settings.Hsm) -> Site:
    lab.reset()
    facts = lab.facts
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    tls = lab.tls.server("signer")
    return Site(
        tmp_path,
        {
            "": {"state": "state", "run": "run"},
            "hsm": {
                "module": token.module,
                "token": token.token,
                "pin": token.pin,
                "environment": token.environment,
            },
            "repository": {
                "public_url": facts.cr_url,
                "url": Path(facts.cr_dir).as_uri(),
                "tls_ca": facts.tls_ca,
            },
            "signer.tls": {
                "certificate": str(tls.certificate),
                "key": str(tls.key),
                "ca": str(tls.ca),
            },
            "authorities.us": {
                "url": facts.pa_url,
                "root": facts.pa_root,
                "user": facts.pa_user,
                "password": facts.pa_password_file,
                "tls_ca": facts.tls_ca,
            },
            "issuers.ca": {
                "directory": facts.ca_directory,
                "tls_ca": facts.tls_ca,
                "terms_of_service_agreed": True,
            },
            "profiles.acme": {
                "spc": "1234",
                "authority": "us",
                "issuers": ["ca"],
                "subject": {"organization": "Acme"},
            },
            "[callers]": {"id": "spiffe://lab/as", "profiles": ["acme"]},
        },
    )


def errors(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(one.what, one.message) for one in findings if one.level is Level.ERROR]


def of(findings: list[Finding], what: str) -> list[Finding]:
    return [one for one in findings if one.what == what]


def read(path: str) -> str:
    return Path(path).read_text()


def private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def active(birth: BirthRecord, x5u: str, chain: str, not_after: int) -> Credential:
    certificate = Certificate(
        chain=chain,
        issuer="ca",
        order_url="https://ca/1",
        serial="01",
        spki_sha256="00",
        not_before=1,
        not_after=not_after,
    )
    return Credential(
        id="00000000000000ab",
        profile="acme",
        spc="1234",
        key_id=birth.key_id,
        created=1,
        state=Active(birth=birth, certificate=certificate, x5u=x5u, since=1, epoch=1),
    )


def made_key(token: settings.Hsm) -> BirthRecord:
    with Hsm.open(token, pin_of(token)) as hsm:
        return hsm.generate(new_key_id(), "kmsd test", int(time.time()))


def destroy(token: settings.Hsm, birth: BirthRecord) -> None:
    with Hsm.open(token, pin_of(token)) as hsm:
        hsm.destroy(birth.key_id, birth.public_key)


async def test_before_the_first_start_nothing_is_an_error(site: Site) -> None:
    findings = await site.check()
    assert errors(findings) == []
    assert {one.what for one in findings} == {
        "configuration",
        "clock",
        "secrets",
        "folder state",
        "folder run",
        "folder keyring",
        "tls",
        "store",
        "keyring",
        "hsm",
        "authority us",
        "issuer ca",
        "repository",
    }
    assert any("can log in" in one.message for one in of(findings, "authority us"))
    assert any("trusts 1 STI-CAs" in one.message for one in of(findings, "authority us"))
    assert all(one.message.endswith(".") for one in findings if one.what != "configuration")


async def test_checking_changes_nothing(site: Site) -> None:
    Store.open(site.store).close()
    await site.check()
    before = tree(site.folder)
    await site.check()
    after = tree(site.folder)
    # Written by this test, and locks: of the login, and of SQLite.
    for volatile in ("kmsd.toml", "run/pin-refused", "state/kmsd.db-shm"):
        before.pop(f"{site.folder}/{volatile}")
        after.pop(f"{site.folder}/{volatile}")
    assert after == before


async def test_a_configuration_that_cannot_be_used_is_all_there_is_to_say(site: Site) -> None:
    site.table["hsm"]["pim"] = "x"
    site.table["profiles.acme"]["authority"] = 1
    findings = await site.check()
    assert [one.what for one in findings] == ["configuration"] * 2
    assert errors(findings)[0][1].startswith("hsm.pim: unknown key")
    missing = [one async for one in check(site.folder / "none.toml")]
    assert [(one.what, one.level) for one in missing] == [("configuration", Level.ERROR)]


async def test_a_wrong_pin_is_tried_once(site: Site, token: settings.Hsm) -> None:
    site.table["hsm"]["pin"] = private(site.folder / "pin", "000000")
    first = of(await site.check(), "hsm")
    second = of(await site.check(), "hsm")
    assert [one.level for one in (*first, *second)] == [Level.ERROR, Level.ERROR]
    assert "refused this PIN before" in second[0].message
    assert "000000" not in str((first, second))
    with Hsm.open(token, pin_of(token)):
        pass


async def test_one_failure_hides_no_other(site: Site) -> None:
    site.table["hsm"]["token"] = "nobody"
    site.table["authorities.us"]["password"] = private(site.folder / "password", "wrong")
    site.table["issuers.ca"]["directory"] = "https://localhost:1/directory"
    site.table["repository"]["public_url"] = "https://localhost:1/"
    (site.folder / "state").rmdir()
    findings = await site.check()
    assert {what for what, _ in errors(findings)} == {
        "hsm",
        "authority us",
        "issuer ca",
        "repository",
        "folder state",
    }
    assert all(one.next_step for one in findings if one.what in ("hsm", "folder state"))
    assert "wrong" not in str(of(findings, "secrets"))


async def test_a_refused_password_is_sent_once_and_never_shown(site: Site, lab: Lab) -> None:
    site.table["authorities.us"]["password"] = private(site.folder / "password", "hunter2")
    before = sum(one["path"].endswith("/login") for one in lab.requests())
    findings = await site.check()
    assert sum(one["path"].endswith("/login") for one in lab.requests()) == before + 1
    assert [one.level for one in of(findings, "authority us")] == [Level.ERROR]
    assert "hunter2" not in str(findings)


async def test_another_root_does_not_hold_for_the_sti_pa(site: Site, lab: Lab) -> None:
    site.table["authorities.us"]["root"] = lab.facts.ca_root
    found = of(await site.check(), "authority us")
    assert found[-1].level is Level.ERROR


async def test_tls_files_are_read_and_compared(site: Site, lab: Lab) -> None:
    tls = site.table["signer.tls"]
    other = lab.tls.client("other")
    tls["key"] = str(other.key)
    assert ("tls", f"signer.tls.key is not the key of {tls['certificate']}.") in errors(
        await site.check()
    )
    tls["key"] = private(site.folder / "k", "no key")
    tls["ca"] = str(site.folder / "none.pem")
    messages = [message for what, message in errors(await site.check()) if what == "tls"]
    assert any("no private key" in message for message in messages)
    assert any("none.pem cannot be read" in message for message in messages)
    os.chmod(site.folder / "k", 0o644)
    assert any("mode 0644" in message for _, message in errors(await site.check()))


async def test_an_expired_tls_certificate_is_found_before_and_after(site: Site) -> None:
    near = [one for one in await site.check(ahead=390 * 86_400) if one.what == "tls"]
    assert any(one.level is Level.WARNING and "expires in" in one.message for one in near)
    late = [one for one in await site.check(ahead=500 * 86_400) if one.what == "tls"]
    assert any(one.level is Level.ERROR and "expired" in one.message for one in late)
    early = [one for one in await site.check(ahead=-500 * 86_400) if one.what == "tls"]
    assert any("not valid yet" in one.message for one in early)


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0, Level.OK), (20, Level.WARNING), (-20, Level.WARNING), (300, Level.ERROR)],
)
async def test_the_clock_is_compared_with_the_servers(
    site: Site, ahead: float, level: Level
) -> None:
    assert [one.level for one in of(await site.check(ahead=ahead), "clock")] == [level]


async def test_without_any_server_the_clock_is_only_doubted(site: Site) -> None:
    for table, key in (
        ("repository", "public_url"),
        ("authorities.us", "url"),
        ("issuers.ca", "directory"),
    ):
        site.table[table][key] = "https://localhost:1/"
    assert [one.level for one in of(await site.check(), "clock")] == [Level.WARNING]


async def test_an_active_credential_is_followed_to_every_place_it_must_be(
    site: Site, token: settings.Hsm, lab: Lab
) -> None:
    birth = made_key(token)
    chain = read(lab.facts.ca_root)
    x5u = f"{lab.facts.cr_url}00000000000000ab.pem"
    public = Path(lab.facts.cr_dir, "00000000000000ab.pem")
    private(public, chain)
    credential = active(birth, x5u, chain, int(time.time()) + 86_400)
    entry = Entry(
        profile="acme",
        spc="1234",
        credential=credential.id,
        key_id=birth.key_id,
        spki_sha256="00",
        x5u=x5u,
        not_before=1,
        not_after=2,
    )
    with Store.open(site.store) as store:
        store.insert(credential)
        store.next_epoch()
    KeyringWriter(site.folder / "state/keyring").switch(1, [entry])

    findings = await site.check()
    assert errors(findings) == []
    assert of(findings, "repository")[-1].message == f"{x5u} serves the chain that is signed with."
    assert of(findings, "store")[0].message == "1 credentials, 1 of them active, epoch 1."

    private(public, chain + "\n")
    KeyringWriter(site.folder / "state/keyring").switch(2, [], withdrawn=["acme"])
    destroy(token, birth)
    stranger = made_key(token)
    findings = await site.check(ahead=2 * 86_400)
    said = "\n".join(message for _, message in errors(findings))
    assert "octet for octet" in said
    assert "For acme the keyring has none, the store credential 00000000000000ab." in said
    assert f"The key {birth.key_id} of credential 00000000000000ab is not on this token." in said
    assert "The certificate that acme signs with has expired." in said
    warnings = [one.message for one in findings if one.level is Level.WARNING]
    assert any(stranger.key_id in message for message in warnings)
    assert any("ahead of the store's" in message for message in warnings)
    os.unlink(public)
    destroy(token, stranger)


async def test_a_damaged_store_is_told_of(site: Site) -> None:
    (site.folder / "state/kmsd.db").write_bytes(b"not a database " * 1000)
    found = of(await site.check(), "store")
    assert [one.level for one in found] == [Level.ERROR]
    assert "damaged" in found[0].message


async def test_what_only_a_unit_can_see_is_no_error_and_no_login(
    site: Site, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    site.table["hsm"]["pin"] = "credential:hsm-pin"
    site.table["authorities.us"]["password"] = "credential:pa"
    site.table["signer.tls"]["key"] = "credential:tls"
    logins = [one for one in lab.requests() if one["path"].endswith("/login")]
    findings = await site.check()
    assert errors(findings) == []
    assert logins == [one for one in lab.requests() if one["path"].endswith("/login")]
    warned = {one.what for one in findings if one.level is Level.WARNING}
    assert warned >= {"secrets", "hsm", "authority us", "tls"}


async def test_a_folder_open_to_all_or_missing_is_an_error(site: Site) -> None:
    state = site.folder / "state"
    state.chmod(0o777)
    assert any("Everybody" in message for _, message in errors(await site.check()))
    state.rmdir()
    state.write_text("")
    assert ("folder state", f"{state} is no folder.") in errors(await site.check())


async def test_an_sti_ca_that_wants_more_than_is_set_says_what(site: Site, lab: Lab) -> None:
    lab.set(eab="required")
    with contextlib.ExitStack() as stack:
        stack.callback(lab.reset)
        found = of(await site.check(), "issuer ca")
    assert ("issuer ca", "It wants an external account binding.") in errors(found)


async def test_a_module_that_hangs_is_given_up(site: Site) -> None:
    pipe = site.folder / "softhsm2.conf"
    os.mkfifo(pipe)  # SoftHSM waits for a writer
    site.table["hsm"]["environment"] = {"SOFTHSM2_CONF": str(pipe)}
    findings = await site.check(limit=3.0)
    assert ("hsm", "It did not answer within 3 seconds.") in errors(findings)


async def test_a_module_that_crashes_takes_nothing_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = site.folder / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(crash))
    findings = await site.check()
    assert ("hsm", "The module ended the process that used it (SIGSEGV).") in errors(findings)


async def test_a_check_that_fails_itself_hides_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("s3cret")

    monkeypatch.setattr(checks.files, "folders", broken)
    findings = await site.check()
    assert ("folders", "It could not be checked (ZeroDivisionError).") in errors(findings)
    assert "s3cret" not in str(findings)
    assert of(findings, "hsm")[0].level is Level.OK


async def test_a_secret_that_is_none_is_told_of(site: Site) -> None:
    site.table["issuers.ca"]["eab_key_id"] = "kid"
    site.table["issuers.ca"]["eab_mac_key"] = private(site.folder / "mac", "not base64url!")
    password = private(site.folder / "password", "x")
    os.chmod(password, 0o644)
    site.table["authorities.us"]["password"] = password
    said = [one for one in await site.check() if one.level is Level.ERROR]
    assert {one.what for one in said} == {"secrets", "authority us"}
    assert f"chmod 0600 {password}" in [one.next_step for one in said]
    assert "not base64url!" not in str(said)


async def test_tokens_from_files_need_no_login(site: Site, lab: Lab) -> None:
    lab.set(pa_list_needs_login=False)
    site.table["authorities.us"] |= {"token_file": "tokens/{spc}", "user": "", "password": ""}
    logins = [one for one in lab.requests() if one["path"].endswith("/login")]
    found = of(await site.check(), "authority us")
    assert found[0].message == "SPC tokens are imported from files."
    assert any("CRL number" in one.message for one in found)
    assert logins == [one for one in lab.requests() if one["path"].endswith("/login")]


async def test_object_storage_is_left_to_the_first_chain(site: Site) -> None:
    site.table["repository"]["url"] = "s3://chains/acme"
    found = of(await site.check(), "repository")
    assert found[0].level is Level.OK
    assert "s3://chains" in found[0].message


async def test_the_file_of_a_certificate_must_hold_one(site: Site) -> None:
    site.table["signer.tls"]["certificate"] = private(site.folder / "c.pem", "no certificate")
    assert any("holds no certificates" in message for _, message in errors(await site.check()))


async def test_a_missing_root_stops_only_its_own_check(site: Site) -> None:
    site.table["authorities.us"]["root"] = "none.pem"
    found = errors(await site.check())
    assert {what for what, _ in found} == {"tls", "authority us"}
