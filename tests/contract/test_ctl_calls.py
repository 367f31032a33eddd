"""`kmsctl sign` against a Signing service, `kmsctl verify` against a chain over real HTTPS."""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from kmsapi.v1 import admin_pb2, admin_pb2_grpc, signing_pb2, signing_pb2_grpc
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from kmsd import passport
from kmsd.answers import refusal
from kmsd.ctl import chainfetch, main
from kmsd.ctl.invocation import Invocation
from kmsd.errors import Denied, KmsdError, PeerRefused
from kmsd.passport import Claims, Shaken, Tn
from tests.https_server import serving
from tests.pki import certify, https_certificate
from tests.unit.sti import NOW, World, crl
from tests.unit.test_verification import digest

WORLD = World()
HTTPS_ROOT = certify("HTTPS root", ca=True, since=0, until=2**32)
IDENTITY = "eyJh.eyJi.c2ln;info=<https://cr.example.org/1.pem>;alg=ES256;ppt=shaken"
Verify = Callable[..., Awaitable[tuple[int, str, str]]]


class Signer(signing_pb2_grpc.SigningServicer):
    """Signs nothing, remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[signing_pb2.SignRequest] = []
        self.refusal: KmsdError | None = None

    def Sign(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def SignStream(
        self, request_iterator: Iterator[signing_pb2.SignRequest], context: Any
    ) -> Iterator[signing_pb2.SignResponse]:
        for request in request_iterator:
            self.asked.append(request)
            result = signing_pb2.SignResult(signed=signing_pb2.Signed(identity=IDENTITY))
            if self.refusal:
                result = signing_pb2.SignResult(refusal=refusal(self.refusal))
            yield signing_pb2.SignResponse(sequence=request.sequence, results=[result], epoch=1)

    def WatchCredentials(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def signer(tmp_path: Path) -> Iterator[Signer]:
    """A signer without TLS on loopback; `tmp_path/kmsd.toml` says where."""
    service = Signer()
    server = grpc.server(ThreadPoolExecutor(2))
    signing_pb2_grpc.add_SigningServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    (tmp_path / "kmsd.toml").write_text(_configuration(f"127.0.0.1:{port}", plaintext=True))
    yield service
    server.stop(None).wait()


def test_the_header_value_stands_alone_on_standard_output(
    signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--orig", "+12155550121", "--dest", "12155550131", "--dest", "sip:b@example.net"]
    assert _sign(tmp_path, *arguments, "--attest", "A") == 0
    assert capsys.readouterr() == (f"{IDENTITY}\n", "")
    request = signer.asked[0]
    assert request.profile == "acme"
    (asked,) = request.passports
    assert (asked.orig_tn, list(asked.dest_uri)) == ("+12155550121", ["sip:b@example.net"])
    assert asked.shaken.attest == signing_pb2.ATTESTATION_A


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--type", "base"], "base"),
        (["--type", "div", "--div", "12155550132", "--iat", "1700000000"], "div"),
        (["--type", "rph", "--auth", "ets.0"], "rph"),
        (["--type", "rcd", "--nam", "Acme", "--rcdi", '{"/icn": "sha256-x"}'], "rcd"),
    ],
)
def test_every_type_can_be_signed(
    options: list[str], kind: str, signer: Signer, tmp_path: Path
) -> None:
    assert _sign(tmp_path, "--orig", "12155550121", "--dest", "12155550131", *options) == 0
    assert signer.asked[0].passports[0].WhichOneof("type") == kind


@pytest.mark.parametrize(
    "options",
    [["--type", "div"], ["--type", "rcd", "--rcdi", "[]"], ["--type", "rcd", "--rcdi", "{"]],
    ids=" ".join,
)
def test_what_cannot_be_asked_for_is_not_sent(
    options: list[str], signer: Signer, tmp_path: Path
) -> None:
    assert _sign(tmp_path, "--orig", "1", "--dest", "2", *options) == 2
    assert signer.asked == []


def test_the_signers_refusal_is_told_in_its_own_words(
    signer: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signer.refusal = Denied(
        "ATTEST_NOT_GRANTED", "This caller may attest B at most.", next_step="Ask for B."
    )
    assert _sign(tmp_path, "--orig", "12155550121", "--dest", "12155550131", "-o", "json") == 1
    told = capsys.readouterr()
    assert told.err == (
        "This caller may attest B at most.\nreason: ATTEST_NOT_GRANTED\nnext: Ask for B.\n"
    )
    assert json.loads(told.out)["reason"] == "ATTEST_NOT_GRANTED"


def test_without_client_files_the_configuration_is_to_be_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _configuration("127.0.0.1:1", plaintext=False).replace(
        "[repository]", '[signer.tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n[repository]'
    )
    (tmp_path / "kmsd.toml").write_text(text)
    assert _sign(tmp_path, "--orig", "1", "--dest", "2") == 1
    assert "CLIENT_NOT_CONFIGURED" in capsys.readouterr().err


# Verifying


class Repository:
    """Serves one chain at /chain.pem, and what verifiers must not accept beside it."""

    chain = WORLD.chain()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers: dict[str, Response] = {
            "/chain.pem": PlainTextResponse(self.chain),
            "/moved.pem": RedirectResponse("/chain.pem"),
            "/huge.pem": PlainTextResponse("A" * (chainfetch.LONGEST_CHAIN + 1)),
            "/binary.pem": Response(b"\x30\x82\xff"),
        }
        answer = answers.get(scope["path"], PlainTextResponse("no", status_code=404))
        await answer(scope, receive, send)


@pytest.fixture
def verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Verify:
    """Runs `kmsctl verify` on a PASSporT whose x5u is `path` on a repository of its own."""
    monkeypatch.setattr(Invocation, "now", lambda self: datetime.fromtimestamp(NOW, UTC))
    (tmp_path / "roots.pem").write_text("".join(WORLD.roots))
    (tmp_path / "tls.pem").write_text(HTTPS_ROOT.pem)

    async def run(
        *options: str, path: str = "/chain.pem", iat: int = NOW, spoilt: bool = False
    ) -> tuple[int, str, str]:
        async with serving(Repository(), https_certificate(HTTPS_ROOT), tmp_path) as url:
            value = _signed(f"{url}{path}", iat)
            if spoilt:  # with the signature of another PASSporT
                value = value.replace(
                    _signature(value), _signature(_signed(f"{url}/x.pem", NOW - 1))
                )
            given = ["--tls-ca", f"{tmp_path}/tls.pem", *options, "-o", "json", value]
            if "--keeper" not in options:
                given += ["--roots", f"{tmp_path}/roots.pem"]
            code = await asyncio.to_thread(main, ["verify", *given])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


async def test_what_holds_is_told_and_by_whom_it_is_signed(verify: Verify) -> None:
    code, out, err = await verify("--orig", "+1 215 555 0121", "--dest", "12155550131")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["verified"], told["sip_code"], len(told["holds"])) == (True, 200, 8)
    assert (told["facts"]["spc"], told["facts"]["attest"]) == ("1234", "A")


@pytest.mark.parametrize(
    ("how", "options", "sip_code", "step", "holding"),
    [
        ({"iat": NOW - 100}, [], 403, "IAT", 3),
        ({"path": "/moved.pem"}, [], 436, "X5U_STATUS", 1),
        ({"path": "/none.pem"}, [], 436, "X5U_STATUS", 1),
        ({"path": "/huge.pem"}, [], 436, "X5U_TOO_LARGE", 1),
        ({"path": "/binary.pem"}, [], 436, "X5U_NOT_PEM", 1),
        ({}, ["--orig", "12155550199"], 438, "ORIG", 4),
        ({"spoilt": True}, [], 438, "SIGNATURE", 6),
    ],
)
async def test_the_step_that_fails_is_named_with_its_sip_code(
    how: dict[str, Any],
    options: list[str],
    sip_code: int,
    step: str,
    holding: int,
    verify: Verify,
) -> None:
    code, out, _ = await verify(*options, **how)
    told = json.loads(out)
    assert code == 1
    assert (told["verified"], told["sip_code"], told["reason"]) == (False, sip_code, step)
    assert len(told["holds"]) == holding


async def test_a_revoked_certificate_is_a_437(verify: Verify, tmp_path: Path) -> None:
    listed = crl((WORLD.ca.certificate.subject, WORLD.leaf().serial_number))
    (tmp_path / "crl.der").write_bytes(listed.public_bytes(Encoding.DER))
    code, out, _ = await verify("--crl", f"{tmp_path}/crl.der")
    told = json.loads(out)
    assert (code, told["sip_code"], told["reason"]) == (1, 437, "REVOKED")


async def test_the_keeper_gives_the_trust_when_no_file_does(verify: Verify, tmp_path: Path) -> None:
    class Keeper(admin_pb2_grpc.AdminServicer):
        def GetTrust(self, request: Any, context: Any) -> admin_pb2.Trust:
            return admin_pb2.Trust(authority=request.authority, roots=WORLD.roots)

    server = grpc.server(ThreadPoolExecutor(1))
    admin_pb2_grpc.add_AdminServicer_to_server(Keeper(), server)  # type: ignore[abstract]
    address = f"unix:{tmp_path}/keeper.sock"
    server.add_insecure_port(address)
    server.start()
    code, _, err = await verify("--keeper", address)
    server.stop(None).wait()
    assert (code, err) == (0, "")


async def test_without_keeper_and_roots_there_is_no_verdict(verify: Verify, tmp_path: Path) -> None:
    code, out, err = await verify("--keeper", f"unix:{tmp_path}/none.sock")
    assert (code, json.loads(out)["kind"]) == (1, "error")
    assert "--roots FILE" in err.splitlines()[-1]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no certificate"])
def test_roots_that_are_none_are_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "roots.pem").write_bytes(content)
    assert main(["verify", "--roots", f"{tmp_path}/roots.pem", IDENTITY]) == 1
    assert "TRUST_UNREADABLE" in capsys.readouterr().err


def test_a_value_is_read_from_a_pipe_with_or_without_the_headers_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "roots.pem").write_text("".join(WORLD.roots))
    for text in (f"Identity: {IDENTITY}\r\n", IDENTITY):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert main(["verify", "-", "--roots", f"{tmp_path}/roots.pem"]) == 1
        assert "HEADER_MALFORMED" in capsys.readouterr().out


def test_only_https_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(PeerRefused) as refused:
        chainfetch.fetch("http://127.0.0.1/a.pem", tls_ca="", timeout=1.0)
    assert refused.value.reason == "X5U_NOT_HTTPS"


async def test_a_repository_of_unknown_tls_trust_is_not_believed(tmp_path: Path) -> None:
    async with serving(Repository(), https_certificate(HTTPS_ROOT), tmp_path) as url:
        with pytest.raises(PeerRefused) as refused:
            await asyncio.to_thread(chainfetch.fetch, f"{url}/chain.pem", tls_ca="", timeout=5.0)
    assert refused.value.reason == "X5U_UNREACHABLE"


def _signed(x5u: str, iat: int) -> str:
    claims = Claims(
        orig=Tn("12155550121"),
        dest_tn=("12155550131",),
        dest_uri=(),
        iat=iat,
        type=Shaken("A"),
    )
    body = passport.payload(
        claims, now=iat, freshness=60, new_origid=lambda: "123e4567-e89b-12d3-a456-426655440000"
    )
    header = passport.header_segment("shaken", x5u)
    signature = WORLD.sign(digest(passport.signing_input(header, body.segment)))
    return passport.identity(header, body.segment, signature, x5u, "shaken")


def _signature(value: str) -> str:
    return value.partition(";")[0].rpartition(".")[2]


def _sign(folder: Path, *arguments: str) -> int:
    return main(["sign", "--config", f"{folder}/kmsd.toml", "-p", "acme", *arguments])


def _configuration(listen: str, *, plaintext: bool) -> str:
    return f"""\
[signer]
listen = ["{listen}"]
plaintext = {str(plaintext).lower()}

[repository]
url = "file:///srv/cr"
public_url = "https://cr.example.org/"

[authorities.pa]
url = "https://pa.example.org"
root = "root.pem"
token_file = "spc-token"

[issuers.ca]
directory = "https://ca.example.org/directory"

[profiles.acme]
spc = "1234"
authority = "pa"
issuers = ["ca"]
"""
