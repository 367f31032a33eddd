"""The life of credentials, from the first key to its destruction, on real processes.

Each test has a profile of its own in a deployment they share; what breaks processes has its own
deployment.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from kmsd_client import ActiveCredential, ComingCredential, Refused, Synced, Withdrawn

from kmsd.lab import Lab, running_lab
from tests.contract.tokens import Token, read_identity, verify_signature
from tests.system import judges
from tests.system.key_room import DEST, IN_A_MOMENT, ORIG, KeyRoom, Table
from tests.system.programs import kill, until

SPCS = {
    "acme": "1234",
    "birch": "567A",
    "cedar": "890B",
    "dogwood": "4321",
    "elm": "765C",
    "fir": "111D",
}
PROFILES: dict[str, Table] = {name: {} for name in SPCS} | {
    "dogwood": {"policy": {"restore_days": IN_A_MOMENT}},
    "elm": {"policy": {"hold_key_days": IN_A_MOMENT}},
}
MOMENTS = {
    "order": "/new-order",
    "challenge": "/challenge/",
    "csr": "/finalize",
    "chain": "/ca/certificate/",
}
"""Profiles, and the request during which the keeper is killed when it enrolls them."""
STEPS = ["new", "keyed", "ordered", "authorized", "finalizing", "issued", "published", "active"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lifecycle")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder / "lab", spcs=list(SPCS.values()), calm=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def room(folder: Path, lab: Lab) -> Iterator[KeyRoom]:
    room = KeyRoom(folder / "room", lab, profiles=PROFILES)
    with room.running(signers=2):
        yield room


def test_an_empty_hsm_becomes_a_passport_that_other_peoples_software_accepts(
    room: KeyRoom, lab: Lab, tmp_path: Path
) -> None:
    """Steps as JSON lines, one signature, and five judges of it."""
    ran = room.kmsctl("enroll", "acme")
    assert ran.code == 0
    assert [step["credential"]["state"] for step in ran.documents] == STEPS
    assert [step["done"] for step in ran.documents] == [False] * 7 + [True]
    assert not any(step["reason"] for step in ran.documents)
    credential = ran.last["credential"]
    assert credential["spc"] == "1234"

    identity = room.sign("acme")
    token = read_identity(identity)
    assert token.x5u == credential["x5u"]
    assert token.claims["orig"] == {"tn": ORIG}

    served = judges.fetch(lab, token.x5u)
    assert served.headers["content-type"] == "application/pem-certificate-chain"
    assert judges.openssl_says(lab, served.text, tmp_path) == "OK"
    assert judges.secsipidx_says(lab, identity, token.x5u, tmp_path) == "ok"
    header, payload = judges.joserfc_reads(identity, served.text)
    assert header["x5u"] == token.x5u
    assert json.loads(payload) == token.claims
    verify_signature(token, _leaf_key(served.text))
    verdict = room.kmsctl("verify", identity)
    assert (verdict.code, verdict.last["verified"]) == (0, True)
    assert verdict.last["facts"]["spc"] == "1234"


def test_a_spoiled_signature_convinces_no_judge(room: KeyRoom, lab: Lab, tmp_path: Path) -> None:
    _ensure_active(room, "acme")
    identity = room.sign("acme")
    token = read_identity(identity)
    head, _, rest = identity.partition(";")
    spoiled = f"{head[:-6]}{'AAAAAA' if head[-6:] != 'AAAAAA' else 'BBBBBA'};{rest}"
    assert judges.secsipidx_says(lab, spoiled, token.x5u, tmp_path) != "ok"
    verdict = room.kmsctl("verify", spoiled)
    assert (verdict.code, verdict.last["sip_code"]) == (1, 438)


def test_what_was_made_can_be_read_back_down_to_the_origin_of_its_key(
    room: KeyRoom, lab: Lab
) -> None:
    active = _ensure_active(room, "acme")
    document = room.credential(active["id"][:8])
    assert document["credential"] == active
    birth = document["birth"]
    leaf = x509.load_pem_x509_certificates(document["chain_pem"].encode())[0]
    assert judges.spki(birth) == _spki(leaf)
    assert document["certificates"][0]["spki_sha256"] == birth["public_key_sha256"]
    assert birth["attributes"]["CKA_SENSITIVE"]
    assert not birth["attributes"]["CKA_EXTRACTABLE"]
    profile = room.profile("acme")
    assert profile["active"] == active
    assert profile["next_step"] == "renew"
    listed = room.credentials("--profile", "acme")
    assert [one["id"] for one in listed] == [active["id"]]
    status = room.status()
    assert status["hsm"]["usable"]
    assert [one["alive"] for one in status["signers"]] == [True, True]
    assert {one["epoch"] for one in status["signers"]} == {status["epoch"]}
    assert not [alarm for alarm in status["alarms"] if alarm["subject"] == "acme"]


def test_health_and_reflection_are_on_at_signer_and_keeper(room: KeyRoom, lab: Lab) -> None:
    files = lab.tls.client("as1")
    mutual = grpc.ssl_channel_credentials(
        files.ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )
    for service, channel in (
        ("kmsapi.v1.Signing", grpc.secure_channel(room.target, mutual)),
        ("kmsapi.v1.Admin", grpc.insecure_channel(f"unix:{room.run}/keeper.sock")),
    ):
        with channel:
            check = health_pb2.HealthCheckRequest(service=service)
            said = health_pb2_grpc.HealthStub(channel).Check(check, timeout=10)
            assert said.status == health_pb2.HealthCheckResponse.SERVING
            reflected = ProtoReflectionDescriptorDatabase(channel)
            assert service in reflected.get_services()
            assert reflected.FindFileContainingSymbol(service).package == "kmsapi.v1"


def test_people_read_the_same_in_tables(room: KeyRoom) -> None:
    active = _ensure_active(room, "acme")
    code, table, _ = room.kmsctl_for_people("credentials")
    assert code == 0
    assert active["id"][:8] in table
    code, _, errors = room.kmsctl_for_people("enroll", "acme")
    assert code == 1
    assert "reason: PROFILE_ACTIVE" in errors
    assert "kmsctl rotate acme" in errors


async def test_a_rotation_costs_no_signature_and_every_passport_still_verifies(
    room: KeyRoom, lab: Lab
) -> None:
    """Key and URL are new, the old chain stays public, watchers are told: first of what comes."""
    first = room.enrolled("birch")
    told: list[ActiveCredential] = []
    heard: list[tuple[type, str]] = []
    synced = asyncio.Event()

    async def watch() -> None:
        async with room.async_client("birch") as client, aclosing(client.watch(["birch"])) as news:
            async for change in news:
                if isinstance(change, Synced):
                    synced.set()
                elif isinstance(change, ActiveCredential | ComingCredential):
                    heard.append((type(change), change.x5u))
                if isinstance(change, ActiveCredential):
                    told.append(change)
                if len(told) == 3:
                    return

    watching = asyncio.create_task(watch())
    await asyncio.wait_for(synced.wait(), 10)
    with _signing(room, "birch") as signed:
        second = await asyncio.to_thread(room.rotated, "birch")
        third = await asyncio.to_thread(room.rotated, "birch")
    await asyncio.wait_for(watching, 10)

    assert len({one["key_id"] for one in (first, second, third)}) == 3
    assert [one.x5u for one in told] == [first["x5u"], second["x5u"], third["x5u"]]
    assert heard == [
        (ActiveCredential, first["x5u"]),
        (ComingCredential, second["x5u"]),
        (ActiveCredential, second["x5u"]),
        (ComingCredential, third["x5u"]),
        (ActiveCredential, third["x5u"]),
    ]
    assert [room.state_of(one["id"]) for one in (first, second, third)] == [
        "retired",
        "retired",
        "active",
    ]
    used = Counter(token.x5u for token in signed)
    assert set(used) == {first["x5u"], second["x5u"], third["x5u"]}
    keys = {x5u: _leaf_key(judges.fetch(lab, x5u).text) for x5u in used}
    for token in signed:
        verify_signature(token, keys[token.x5u])


def test_a_retired_certificate_is_revoked_and_an_active_one_only_on_demand(
    room: KeyRoom, lab: Lab, tmp_path: Path
) -> None:
    old, new = room.enrolled("cedar"), room.rotated("cedar")
    unasked = room.kmsctl("revoke", old["id"], "--reason", "superseded")
    assert (unasked.code, unasked.last["reason"]) == (2, "CONFIRMATION_MISSING")

    revoked = room.kmsctl("revoke", old["id"], "--reason", "superseded", "--yes")
    assert revoked.code == 0
    assert revoked.last["credential"]["revocation"]["reason"] == "superseded"
    entry = judges.der_serial(lab, old["serial"])
    assert entry is not None
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is (
        x509.ReasonFlags.superseded
    )
    again = room.kmsctl("revoke", old["id"], "--reason", "superseded", "--yes")
    assert (again.code, again.last["credential"]) == (0, revoked.last["credential"])

    ended = ("--reason", "cessationOfOperation", "--yes")
    refused = room.kmsctl("revoke", new["id"], *ended)
    assert (refused.code, refused.last["reason"]) == (1, "CREDENTIAL_ACTIVE")
    assert "kmsctl rotate cedar" in refused.last["next_step"]
    assert judges.der_serial(lab, new["serial"]) is None
    identity = room.sign("cedar")
    assert judges.secsipidx_says(lab, identity, new["x5u"], tmp_path) == "ok"

    with _withdrawals(room, "cedar") as gone:
        done = room.kmsctl("revoke", new["id"], *ended, "--now")
        assert (done.code, done.last["credential"]["state"]) == (0, "retired")
        until("the watcher is told", lambda: gone)
    assert judges.der_serial(lab, new["serial"]) is not None
    assert "revoked" in judges.secsipidx_says(lab, identity, new["x5u"], tmp_path)
    with pytest.raises(Refused) as stopped:
        room.sign("cedar")
    assert stopped.value.reason == "PROFILE_NOT_ACTIVE"
    alarms = [one for one in room.status()["alarms"] if one["subject"] == "cedar"]
    assert [one["next_step"] for one in alarms] == ["kmsctl enroll cedar"]
    room.enrolled("cedar")
    room.sign("cedar")


def test_a_destruction_is_scheduled_taken_back_and_final_and_its_record_stays(
    room: KeyRoom, lab: Lab
) -> None:
    old = room.enrolled("dogwood")
    busy = room.kmsctl("destroy", old["id"], "--yes")
    assert (busy.code, busy.last["reason"]) == (1, "CREDENTIAL_STATE")
    room.rotated("dogwood")

    birch = _ensure_active(room, "birch")
    room.rotated("birch")
    doomed = room.kmsctl("destroy", birch["id"], "--yes").last["credential"]
    assert doomed["state"] == "doomed"
    assert doomed["destroy_at"]
    restored = room.kmsctl("restore", birch["id"])
    assert (restored.code, restored.last["credential"]["state"]) == (0, "retired")

    room.kmsctl("destroy", old["id"], "--yes")  # its profile has next to no time to restore
    until("it is destroyed", lambda: room.state_of(old["id"]) == "destroyed")
    on_token = room.inventory().ours
    assert old["key_id"] not in on_token
    assert birch["key_id"] in on_token
    assert old["id"] not in {one["id"] for one in room.credentials()}
    assert old["id"] in {one["id"] for one in room.credentials("--all")}
    birth = room.credential(old["id"])["birth"]
    assert birth["public_key_sha256"] == old["spki_sha256"]
    assert judges.fetch(lab, old["x5u"]).status_code == 200
    late = room.kmsctl("restore", old["id"])
    assert (late.code, late.last["reason"]) == (1, "CREDENTIAL_STATE")
    room.sign("dogwood")


def test_a_retired_key_goes_by_itself_when_its_holding_time_is_over(room: KeyRoom) -> None:
    old = room.enrolled("elm")
    room.rotated("elm")
    until("it is destroyed", lambda: room.state_of(old["id"]) == "destroyed")
    assert old["key_id"] not in room.inventory().ours
    room.sign("elm")


def test_a_keeper_that_starts_again_finds_everything_as_it_was(folder: Path, lab: Lab) -> None:
    room = KeyRoom(folder / "restarted", lab, profiles={"acme": {}, "birch": {}})
    with room.signer():
        with room.keeper():
            first, second = room.enrolled("acme"), room.enrolled("birch")
            before = room.credentials(), room.status()["epoch"]
        room.sign("acme")  # nobody keeps now
        with room.keeper():
            assert (room.credentials(), room.status()["epoch"]) == before
            assert room.profile("birch")["active"] == second
            assert room.rotated("acme")["id"] != first["id"]
            other = room.kmsctl("status").last
            assert other["condition"] == "ok"


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> Iterator[KeyRoom]:
    """A deployment with a signer, whose keeper is the test's to start and to kill."""
    spcs = [f"{number}A" for number in range(111, 111 + len(MOMENTS))]
    with running_lab(folder / "slow", spcs=spcs, calm=True, delay_seconds=0.1) as lab:
        lab.set(retry_after=0)
        room = KeyRoom(folder / "interrupted", lab, profiles={name: {} for name in MOMENTS})
        with room.signer():
            yield room


@pytest.mark.parametrize("profile", MOMENTS)
def test_a_keeper_killed_at_any_moment_takes_up_the_same_order(
    interrupted: KeyRoom, profile: str
) -> None:
    """No second certificate, no orphan key, and no second credential."""
    room, lab = interrupted, interrupted.lab
    before, keys = lab.counts(), room.inventory().ours
    with room.keeper() as keeper, room.following("enroll", profile) as following:
        seen = len(lab.requests())
        following.step()
        until(
            f"{MOMENTS[profile]} is asked for",
            lambda: any(MOMENTS[profile] in one["path"] for one in lab.requests()[seen:]),
        )
        kill(keeper)
        assert following.end().code == 1
    with room.keeper():
        active = _ensure_active(room, profile)
        room.sign(profile)
        listed = room.credentials("--all", "--profile", profile)
    assert [one["id"] for one in listed] == [active["id"]]
    assert lab.counts()["certificates"] - before["certificates"] == 1
    assert lab.counts()["accounts"] - before["accounts"] == 1
    found = room.inventory()
    assert active["key_id"] in found.ours
    assert (len(found.ours - keys), found.foreign) == (2, 0)


def test_signers_need_no_keeper_no_store_and_no_network(tmp_path: Path) -> None:
    with ExitStack() as outside:
        lab = outside.enter_context(running_lab(tmp_path / "lab", spcs=["1234"], calm=True))
        room = KeyRoom(tmp_path / "room", lab)
        keeper = outside.enter_context(room.keeper())
        with room.signer(1) as first:
            active = room.enrolled()
            room.until_serving(1)
            chain = judges.fetch(lab, active["x5u"]).text
            kill(keeper)
            outside.close()
            assert room.state is not None
            for path in room.state.glob("kmsd.db*"):
                path.unlink()
            assert room.kmsctl("status").last["reason"] == "KEEPER_NOT_RUNNING"
            verify_signature(read_identity(room.sign()), _leaf_key(chain))
            kill(first)
        with room.signer(1):
            room.until_serving(1)
            token = read_identity(room.sign())
    assert token.x5u == active["x5u"]
    verify_signature(token, _leaf_key(chain))


def _ensure_active(room: KeyRoom, profile: str) -> Table:
    """What the profile signs with; enrolled (or followed to its end) if nothing yet."""
    active: Table | None = room.profile(profile)["active"]
    return active or room.enrolled(profile)


@contextmanager
def _signing(room: KeyRoom, profile: str) -> Iterator[list[Token]]:
    """An STI-AS that signs without a pause; everything it signed. Nothing may be refused."""
    signed: list[Token] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def sign() -> None:
        try:
            with room.client(profile) as client:
                while not stop.is_set():
                    signed.append(read_identity(str(client.sign_shaken(ORIG, DEST, "A"))))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=sign)
    thread.start()
    try:
        until("the first signature", lambda: signed or failures)
        yield signed
        enough = len(signed) + 20
        until("signatures with what is active now", lambda: len(signed) > enough or failures)
    finally:
        stop.set()
        thread.join()
    assert not failures


@contextmanager
def _withdrawals(room: KeyRoom, profile: str) -> Iterator[list[str]]:
    """The profiles that a watcher of `profile` was told cannot sign any more."""
    gone: list[str] = []
    synced = threading.Event()
    client = room.client(profile)

    def watch() -> None:
        for change in client.watch([profile]):
            if isinstance(change, Synced):
                synced.set()
            elif isinstance(change, Withdrawn):
                gone.append(change.profile)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert synced.wait(10)
        yield gone
    finally:
        client.close()
        thread.join()


def _leaf_key(chain: str) -> ec.EllipticCurvePublicKey:
    key = x509.load_pem_x509_certificates(chain.encode())[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
