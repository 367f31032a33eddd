"""kmsd.toml: what is accepted, what is refused and in which words, and where secrets come from."""

import contextlib
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmsd import config
from kmsd.config import InvalidConfiguration
from kmsd.errors import Misconfigured
from kmsd.settings import Configuration, IssuerRules, PaAuthorization

EXAMPLE = Path(__file__).parents[2] / "systemd" / "kmsd.toml"

GOOD = """
state = "state"
run = "../run"

[hsm]
module = "lib/module.so"
pin = "./pin"

[repository]
public_url = "https://cr.example/"

[signer.tls]
certificate = "tls/signer.pem"
key = "tls/signer.key"
ca = "/etc/ca.pem"

[authorities.us]
url = "https://pa.example"
root = "root.pem"
user = "me"
password = "credential:pa"

[issuers.ca]
directory = "https://ca.example/directory"

[profiles.acme]
spc = "1234"
authority = "us"
issuers = ["ca"]
subject = {organization = "Acme"}

[[callers]]
id = "spiffe://example/as"
profiles = ["acme"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kmsd.toml"


def load(file: Path, text: str = GOOD) -> Configuration:
    file.write_text(text)
    return config.load(file)


def with_(setting: str, value: str, text: str = GOOD) -> str:
    """The text with one setting (`table.key`, TOML value) put in place of what was there."""
    if setting == "callers":
        text = text.split("[[callers]]")[0]
    table, _, key = setting.rpartition(".")
    header = f"[{table}]\n" if table else ""
    lines = text.split("\n")
    start = lines.index(header.strip()) if header and header.strip() in lines else -1
    if header and start < 0:
        return f"{text}\n{header}{key} = {value}\n"
    kept = lines[: start + 1]
    rest = lines[start + 1 :]
    end = next((n for n, line in enumerate(rest) if line.startswith("[")), len(rest))
    section = [line for line in rest[:end] if not line.startswith(f"{key} =")]
    return "\n".join([*kept, f"{key} = {value}", *section, *rest[end:]])


def without(line: str) -> str:
    assert f"\n{line}\n" in GOOD
    return GOOD.replace(f"{line}\n", "")


def problems(file: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidConfiguration) as refusal:
        load(file, text)
    assert refusal.value.reason == "CONFIG_INVALID"
    assert all(problem in str(refusal.value) for problem in refusal.value.problems)
    return refusal.value.problems


# What is accepted


def test_relative_paths_are_relative_to_the_file(file: Path) -> None:
    loaded = load(file)
    folder = file.parent
    assert loaded.state == f"{folder}/state"
    assert loaded.run == f"{folder.parent}/run"
    assert loaded.hsm.module == f"{folder}/lib/module.so"
    assert loaded.hsm.pin == f"{folder}/pin"
    assert loaded.authorities["us"].root == f"{folder}/root.pem"
    assert loaded.authorities["us"].password == "credential:pa"
    assert loaded.authorities["us"].tls_ca == ""
    assert loaded.signer.tls is not None
    assert loaded.signer.tls.key == f"{folder}/tls/signer.key"
    assert loaded.signer.tls.ca == "/etc/ca.pem"


def test_what_is_not_given_gets_its_place(file: Path) -> None:
    loaded = load(file)
    assert loaded.keyring == f"{loaded.state}/keyring"
    assert loaded.store.url == f"sqlite:///{loaded.state}/kmsd.db"
    assert loaded.repository.url == f"file://{loaded.state}/repository"
    assert loaded.keeper.listen == f"unix:{loaded.run}/keeper.sock"


def test_a_relative_store_and_socket_are_relative_to_the_file_too(file: Path) -> None:
    text = with_("keeper.listen", '"unix:k.sock"', with_("store.url", '"sqlite:///a/b.db"'))
    loaded = load(file, text)
    assert loaded.store.url == f"sqlite:///{file.parent}/a/b.db"
    assert loaded.keeper.listen == f"unix:{file.parent}/k.sock"
    other = "postgresql+psycopg://kmsd@db/kmsd"
    assert load(file, with_("store.url", f'"{other}"')).store.url == other


def test_a_module_by_its_bare_name_is_left_to_the_linker(file: Path) -> None:
    assert load(file, with_("hsm.module", '"libcs_pkcs11.so"')).hsm.module == "libcs_pkcs11.so"


def test_the_path_of_the_file_may_be_relative(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(GOOD)
    monkeypatch.chdir(file.parent)
    assert config.load("kmsd.toml").state == f"{file.parent}/state"


def test_a_byte_order_mark_is_no_problem(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert config.load(file).profiles["acme"].spc == "1234"


def test_the_installed_example_is_good_as_it_is() -> None:
    loaded = config.load(EXAMPLE)
    assert loaded.state == "/var/lib/kmsd"
    assert config.warnings(loaded) == ()


def test_the_installed_example_shows_every_setting_with_its_default() -> None:
    commented = re.compile(r"^# (\[[a-z.]+\]|[A-Za-z0-9_]+ = .*)$", re.MULTILINE)
    text = commented.sub(r"\1", EXAMPLE.read_text())
    shown = tomllib.loads(text)
    assert set(missing(Configuration, shown)) == set()
    with tempfile.TemporaryDirectory() as folder:
        all_shown = Path(folder, "kmsd.toml")
        all_shown.write_text(text)
        config.load(all_shown)


def missing(kind: Any, table: dict[str, Any], path: str = "") -> Iterator[str]:
    """Settings of `kind` that the table does not show."""
    for name, hint in get_type_hints(kind).items():
        if name not in table:
            yield f"{path}{name}"
            continue
        value = table[name]
        inner = next((one for one in (hint, *get_args(hint)) if is_table(one)), None)
        if name == "rules":
            yield from missing(IssuerRules, value, f"{path}rules.")
        elif isinstance(value, list) and inner:
            yield from missing(inner, value[0], f"{path}{name}.")
        elif inner and hint is not inner and type(None) not in get_args(hint):
            for item in value.values():
                yield from missing(inner, item, f"{path}{name}.")
        elif inner:
            yield from missing(inner, value, f"{path}{name}.")


def is_table(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


# What is refused


def told(name: str) -> list[tuple[str, str, str]]:
    """(setting, TOML value, problem) of each entry in a file of this folder."""
    text = Path(__file__).with_name(name).read_text()
    return re.findall(r"^([^#\s].*?) = (.*)\n    (.*)$", text, re.MULTILINE)


@pytest.mark.parametrize(("setting", "value", "problem"), told("config_problems.txt"))
def test_one_thing_wrong_is_one_line(file: Path, setting: str, value: str, problem: str) -> None:
    assert problems(file, with_(setting, value)) == (problem,)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('public_url = "https://cr.example/"', "repository.public_url: is missing"),
        ('root = "root.pem"', "authorities.us.root: is missing"),
        ('key = "tls/signer.key"', "signer.tls.key: is missing"),
        ('id = "spiffe://example/as"', "callers[0].id: is missing"),
    ],
)
def test_what_is_missing_is_named(file: Path, line: str, problem: str) -> None:
    assert problems(file, without(line)) == (problem,)


def test_all_problems_are_told_at_once(file: Path) -> None:
    text = with_("hsm.pim", '"x"', with_("profiles.acme.spc", "7")).replace("[issuers.ca]", "")
    found = problems(file, text)
    assert len(found) >= 3
    assert 'hsm.pim: unknown key; did you mean "pin"?' in found
    assert problems(file, "\n".join(f"k{n} = 1" for n in range(5_000)))[99:] != ()


def test_without_tls_signers_serve_on_loopback_only(file: Path) -> None:
    bare = re.sub(r"\[signer.tls\][^[]*", "", GOOD)
    assert problems(file, bare) == ("signer.tls: is missing; signers serve with mutual TLS",)
    plain = with_("signer.plaintext", "true", bare)
    assert load(file, plain).signer.plaintext
    everywhere = plain.replace("[signer]\n", '[signer]\nlisten = ["[::1]:1", "0.0.0.0:1", "a:1"]\n')
    assert [problem.split(":")[0] for problem in problems(file, everywhere)] == [
        "signer.listen[1]",
        "signer.listen[2]",
    ]


def test_a_value_in_the_wrong_place_is_never_shown(file: Path) -> None:
    for setting in ("hsm.pin", "authorities.us.password", "issuers.ca.eab_mac_key"):
        assert "s3cret" not in str(problems(file, with_(setting, '"s3cret"')))
    assert "s3cret" not in str(problems(file, with_("hsm.threads", '"s3cret"')))
    assert "s3cret" not in str(problems(file, with_("store.url", '"postgresql://u:s3cret@h/d"')))


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("postgresql:///kmsd", True),
        ("postgresql://kmsd@/kmsd?host=/run/postgresql", True),
        ("postgresql://kmsd@[::1]/kmsd", True),
        ("postgresql://kmsd@db/kmsd?sslmode=verify-full&sslrootcert=/etc/ca.pem", True),
        ("postgresql://kmsd@db/kmsd", False),
        ("postgresql://kmsd@/kmsd?host=db", False),
        ("postgresql://kmsd@db/kmsd?sslmode=require", False),
    ],
)
def test_a_store_that_others_can_listen_to_is_a_warning(
    file: Path, url: str, private: bool
) -> None:
    text = with_("store.password", '"./pw"', with_("store.url", f'"{url}"'))
    loaded = load(file, text)
    assert loaded.store.password == f"{file.parent}/pw"
    said = [line.split(":")[0] for line in config.warnings(loaded)]
    assert said == ([] if private else ["store.url"])
    assert len(config.warnings(load(file, with_("store.password", '"./pw"')))) == 1


def test_what_is_allowed_but_may_not_be_meant_is_a_warning(file: Path) -> None:
    second = '\n[profiles.other]\nspc = "1234"\nauthority = "us"\nissuers = ["ca"]\n'
    text = with_("repository.public_url", '"https://cr.example:9443/"') + second
    text += 'subject = {country = "CA"}\n'
    assert config.warnings(load(file)) == ()
    assert set(config.warnings(load(file, text))) == {
        "profiles.acme.spc: 1234 is the code of 2 profiles",
        "profiles.other.spc: 1234 is the code of 2 profiles",
        "profiles.other: no [[callers]] entry lets anybody sign for it",
        "profiles.other.subject.country: certificates of us have C=US",
        "profiles.other.subject.organization: is empty; a certificate must have one O",
        "repository.public_url: verifiers take chains from ports 443 and 8443 only",
    }


# What is no configuration at all


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"state = ", "CONFIG_SYNTAX"),
        (b"a = 1\na = 2", "CONFIG_SYNTAX"),
        (b"a = " + b"[" * 100_000, "CONFIG_SYNTAX"),
        (b"a = " + b"9" * 10_000, "CONFIG_SYNTAX"),
        (b"a = '\x00'", "CONFIG_SYNTAX"),
        (b"# caf\xe9", "CONFIG_NOT_UTF8"),
        (b"#" * (config.LIMIT + 1), "CONFIG_TOO_LARGE"),
        (b"", "CONFIG_INVALID"),
    ],
)
def test_what_is_not_toml_is_refused_by_its_own_reason(
    file: Path, content: bytes, reason: str
) -> None:
    file.write_bytes(content)
    with pytest.raises(Misconfigured) as refusal:
        config.load(file)
    assert refusal.value.reason == reason
    assert str(file) in refusal.value.message


def test_a_syntax_error_names_line_and_column(file: Path) -> None:
    file.write_text("a = 1\nb = ]\n")
    with pytest.raises(Misconfigured) as refusal:
        config.load(file)
    assert (refusal.value.metadata["line"], refusal.value.metadata["column"]) == ("2", "5")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (tmp_path / "none.toml", "CONFIG_MISSING"),
        (tmp_path, "CONFIG_UNREADABLE"),
        (pipe, "CONFIG_UNREADABLE"),
        (Path(f"{tmp_path}/a\0b"), "CONFIG_UNREADABLE"),
    ):
        with pytest.raises(Misconfigured) as refusal:
            config.load(path)
        assert refusal.value.reason == reason


WORDS = ["state", "hsm", "pin", "profiles", "acme", "spc", "callers", "issuers", "rules", "nan"]
tomlish = st.lists(
    st.one_of(
        st.sampled_from(GOOD.splitlines()),
        st.builds("{} = {}".format, st.sampled_from(WORDS), st.sampled_from([*WORDS, "1", "[]"])),
        st.builds("[{}.{}]".format, st.sampled_from(WORDS), st.sampled_from(WORDS)),
        st.text(max_size=20),
    )
).map("\n".join)


@given(tomlish)
def test_no_text_does_anything_but_load_or_be_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kmsd.toml")
        file.write_bytes(text.encode(errors="surrogatepass"))
        with contextlib.suppress(Misconfigured):
            config.warnings(config.load(file))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner),
    max_leaves=5,
)


@given(st.sampled_from(list(get_type_hints(Configuration))), values)
def test_any_value_for_any_table_is_taken_or_told_of(name: str, value: Any) -> None:
    table = tomllib.loads(GOOD) | {name: value}
    faults = list(config.shape.faults(Configuration, table))
    try:
        loaded = msgspec.convert(table, Configuration)
    except msgspec.ValidationError:
        assert faults
    else:
        rules_are_rules = all(
            not list(config.shape.faults(IssuerRules, issuer.rules))
            for issuer in loaded.issuers.values()
        )
        assert not faults
        if rules_are_rules:
            list(config.rules.problems(loaded))


# Secrets


def write(path: Path, content: bytes, mode: int = 0o600) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"1234", "1234"),
        (b"1234\n", "1234"),
        (b"1234\r\n", "1234"),
        (b"1234\n\n", "1234\n"),
        (b" 12 34 \n", " 12 34 "),
        ("pässword\n".encode(), "pässword"),
        (b"x" * 65_536, "x" * 65_536),
    ],
)
def test_a_secret_is_the_file_without_its_last_newline(
    tmp_path: Path, content: bytes, text: str
) -> None:
    assert config.secret(write(tmp_path / "pin", content), "hsm.pin") == text


@pytest.mark.parametrize("text", ["_-8BAg", "_-8BAg==", "/+8BAg==\n", " _-8B\r\nAg \n", "/+8BAg"])
def test_a_mac_key_is_read_however_the_sti_ca_wrote_it(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "mac", text.encode())
    assert config.mac_key(path, "issuers.ca.eab_mac_key") == bytes.fromhex("ffef0102")


@pytest.mark.parametrize("text", ["_-8BA", "_-8BAh", "no key!", "_-8B=Ag=", "="])
def test_what_is_no_mac_key_is_the_operators_to_correct(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "mac", text.encode())
    with pytest.raises(Misconfigured) as caught:
        config.mac_key(path, "issuers.ca.eab_mac_key")
    assert caught.value.reason == "SECRET_INVALID"
    assert text not in str(caught.value) or text == "="


@pytest.mark.parametrize("content", [b"", b"\n", b" \n", b"\xff", b"12\x0034", b"x" * 65_537])
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Misconfigured) as refusal:
        config.secret(write(tmp_path / "pin", content), "hsm.pin")
    assert refusal.value.reason == "SECRET_INVALID"
    assert "hsm.pin" in str(refusal.value)
    assert "34" not in str(refusal.value).replace(str(tmp_path), "").replace("65536", "")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "pin", b"s3cret", mode)
    with pytest.raises(Misconfigured) as refusal:
        config.secret(path, "hsm.pin")
    assert refusal.value.reason == "SECRET_PERMISSIONS"
    assert refusal.value.next_step == f"chmod 0600 {path}"
    assert "s3cret" not in str(refusal.value)


def test_a_secret_that_is_not_there_is_missing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for reference, reason in (
        (str(tmp_path / "none"), "SECRET_MISSING"),
        ("", "SECRET_MISSING"),
        (str(tmp_path), "SECRET_UNREADABLE"),
        (str(pipe), "SECRET_UNREADABLE"),
        (f"{tmp_path}/a\0b", "SECRET_UNREADABLE"),
    ):
        with pytest.raises(Misconfigured) as refusal:
            config.secret(reference, "hsm.pin")
        assert refusal.value.reason == reason


def test_a_systemd_credential_is_read_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "hsm-pin", b"1234\n", 0o440)
    write(tmp_path / "open", b"1234\n", 0o444)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(Misconfigured) as refusal:
        config.secret("credential:hsm-pin", "hsm.pin")
    assert refusal.value.reason == "SECRET_MISSING"
    assert "LoadCredential=hsm-pin" in refusal.value.next_step
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert config.secret("credential:hsm-pin", "hsm.pin") == "1234"
    for name, reason in (
        ("none", "SECRET_MISSING"),
        ("open", "SECRET_PERMISSIONS"),
        ("../pin", "SECRET_INVALID"),
        ("..", "SECRET_INVALID"),
        ("", "SECRET_INVALID"),
    ):
        with pytest.raises(Misconfigured) as refusal:
            config.secret(f"credential:{name}", "hsm.pin")
        assert refusal.value.reason == reason


def test_a_choice_is_kept_as_a_choice(file: Path) -> None:
    loaded = load(file, with_("authorities.us.authorization", '"bearer"'))
    assert loaded.authorities["us"].authorization is PaAuthorization.BEARER
