"""The STI-PA over real HTTPS: logins, tokens, lists, CRLs, and every way it may go wrong."""

import asyncio
import base64
import json
import socket
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from kmsd.authority import Authority
from kmsd.authority.exchange import Answer
from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Unavailable
from kmsd.failures import FailureClass, failure_class
from kmsd.model import TrustList
from kmsd.settings import Authority as Settings
from kmsd.settings import PaAuthorization, PaBody
from tests import proxy
from tests.https_server import serving
from tests.pki import (
    DAY,
    NOW,
    certify,
    https_certificate,
    key_usage,
    make_crl,
    sign_jws,
)

HTTPS_ROOT = certify("HTTPS root", ca=True, since=0, until=2**32)
HTTPS = https_certificate(HTTPS_ROOT)
ROOT = certify("STI-PA Root", ca=True)
INTERMEDIATE = certify("STI-PA Intermediate", ROOT, ca=True)
SIGNER = certify("STI-PA Tokens", INTERMEDIATE)
CRL_SIGNER = certify("STI-PA CRL", ROOT, usage=key_usage(crl=True))
STI_CA = certify("SHAKEN ROOT", ca=True)

FINGERPRINT = "SHA256 " + ":".join(["AB"] * 32)
TKVALUE = "MAigBhYEMTIzNA=="
PASSWORD = 'Gaga"7xyz'
USER = "sp-user"


class StiPa:
    """A small STI-PA. What it does next can be told by replacing what is in `told`, by path."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, Request, Any]] = []
        self.sessions: set[str] = set()
        self.told: dict[str, Callable[[Request], Response]] = {}
        self.list_needs_login = False
        self.basic = False
        self.sequence = 5
        self.crl_number = 7
        self.crl_aia = True
        self.signer = "signer"
        self.claims: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        body = await request.body()
        path = scope["path"]
        self.requests.append((path, request, json.loads(body) if body else None))
        told = next((self.told[each] for each in self.told if path.startswith(each)), None)
        answer = told(request) if told else self.answer(path, request, body)
        await answer(scope, receive, send)

    def answer(self, path: str, request: Request, body: bytes) -> Response:
        match path.removeprefix("/").split("/"):
            case ["api", "v1", "auth", "login"]:
                return self.login(json.loads(body))
            case ["api", "v1", "auth", "logout"]:
                self.sessions.discard(request.headers["Authorization"])
                return JSONResponse({"status": "success"})
            case ["api", "v1", "account", *_, "token"]:
                return self.token(request, json.loads(body))
            case ["api", "v1", "ca-list"]:
                if self.list_needs_login and not self.knows(request):
                    return JSONResponse({"error": "who are you"}, status_code=401)
                return JSONResponse({"status": "success", "caList": self.ca_list()})
            case ["download", "v1", "crl"]:
                return Response(self.crl(), media_type="application/pkix-crl")
            case ["download", "v1", "certificate", "signer.crt"]:
                return Response(SIGNER.pem + INTERMEDIATE.pem)
            case ["download", "v1", "certificate", "crl.crt"]:
                return Response(CRL_SIGNER.certificate.public_bytes(Encoding.DER))
            case _:
                return JSONResponse({"error": "not found"}, status_code=404)

    def login(self, body: Any) -> Response:
        if body != {"userId": USER, "password": PASSWORD}:
            words = {"status": "error", "message": f"wrong {body['password']}", "code": 17}
            return JSONResponse(words, status_code=403)
        session = f"session-{len(self.requests)}"
        self.sessions.add(session)
        return JSONResponse({"status": "success", "accessToken": session})

    def knows(self, request: Request) -> bool:
        said = request.headers.get("Authorization", "")
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return said == basic if self.basic else said.removeprefix("Bearer ") in self.sessions

    def token(self, request: Request, body: Any) -> Response:
        if not self.knows(request):
            said = request.headers.get("Authorization")
            return JSONResponse({"error": f"no session {said}"}, status_code=401)
        atc = {**body.get("atc", body)} | self.claims
        claims = {"exp": NOW + 3600, "jti": "id", "atc": atc}
        header = {"alg": "ES256", "typ": "JWT", "x5u": self.certificate(self.signer)}
        answer = {"status": "success", "token": sign_jws(SIGNER, header, claims)}
        return JSONResponse(answer | {"crl": f"{self.url}/download/v1/crl", "iss": "CN=STI-PA CRL"})

    def ca_list(self) -> str:
        members = {"sequence": self.sequence, "exp": NOW + DAY, "trustList": [STI_CA.pem]}
        return sign_jws(SIGNER, {"alg": "ES256", "x5u": self.certificate(self.signer)}, members)

    def crl(self) -> bytes:
        url = f"{self.url}/download/v1/crl"
        aia = self.certificate("crl") if self.crl_aia else ""
        made = make_crl(CRL_SIGNER, number=self.crl_number, url=url, aia=aia)
        return made.public_bytes(Encoding.PEM)

    def certificate(self, name: str) -> str:
        return f"{self.url}/download/v1/certificate/{name}.crt"

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]

    def logins(self) -> int:
        return self.paths().count("/api/v1/auth/login")


Opened = Callable[..., AbstractAsyncContextManager[Authority]]


@pytest.fixture
async def sti_pa(tmp_path: Path) -> AsyncIterator[StiPa]:
    pa = StiPa()
    async with serving(pa, HTTPS, tmp_path) as url:
        pa.url = url
        yield pa


@pytest.fixture
def opened(sti_pa: StiPa, tmp_path: Path) -> Opened:
    """An authority for the STI-PA, with settings that differ from the defaults as told."""

    @asynccontextmanager
    async def open_authority(password: str = PASSWORD, **other: Any) -> AsyncIterator[Authority]:
        (tmp_path / "ca.pem").write_text(HTTPS_ROOT.pem)
        told: dict[str, Any] = {"url": sti_pa.url, "user": USER, "timeout": 5.0}
        told["tls_ca"] = str(tmp_path / "ca.pem")
        settings = Settings(root="", **(told | other))
        authority = Authority("us", settings, password=password, root_pem=ROOT.pem)
        async with authority:
            yield authority

    return open_authority


async def ask(authority: Authority, now: int = NOW, **other: Any) -> Any:
    told = {
        "account_id": "1234",
        "spc_tkvalue": TKVALUE,
        "fingerprint": FINGERPRINT,
        "profile": "acme",
        "spc": "1234",
    }
    return await authority.spc_token(**(told | other), now=now)


def assert_no_secret(error: BaseException, *secrets: str) -> None:
    said = "".join(traceback.format_exception(error)) + repr(error)
    if isinstance(error, KmsdError):
        said += str(error) + repr(error.metadata) + error.next_step
    if isinstance(error, PeerRefused):
        said += error.problem
    for secret in (PASSWORD, json.dumps(PASSWORD)[1:-1], *secrets):
        assert secret not in said


async def test_a_token_is_asked_for_and_checked(sti_pa: StiPa, opened: Opened) -> None:
    async with opened() as authority:
        token = await ask(authority, account_id="a/1")
    assert token.expires == NOW + 3600
    _, request, body = sti_pa.requests[1]
    assert request.scope["raw_path"] == b"/api/v1/account/a%2F1/token"
    assert body == {
        "atc": {
            "tktype": "TNAuthList",
            "tkvalue": TKVALUE,
            "ca": False,
            "fingerprint": FINGERPRINT,
        }
    }


async def test_the_session_is_kept_for_all_profiles_and_ended_at_the_end(
    sti_pa: StiPa, opened: Opened
) -> None:
    async with opened() as authority:
        await asyncio.gather(*(ask(authority) for _ in range(5)))
        await ask(authority, NOW + 2999)
        assert sti_pa.logins() == 1
        await ask(authority, NOW + 3000)
        assert sti_pa.logins() == 2
    assert sti_pa.paths()[-1] == "/api/v1/auth/logout"
    assert len(sti_pa.sessions) == 1


@pytest.mark.parametrize(
    ("kind", "prefix"), [(PaAuthorization.RAW, "session-"), (PaAuthorization.BEARER, "Bearer ses")]
)
async def test_a_session_is_shown_as_configured(
    kind: PaAuthorization, prefix: str, sti_pa: StiPa, opened: Opened
) -> None:
    async with opened(authorization=kind) as authority:
        await ask(authority)
    assert sti_pa.requests[1][1].headers["Authorization"].startswith(prefix)


async def test_basic_authorization_needs_no_login(sti_pa: StiPa, opened: Opened) -> None:
    sti_pa.basic = True
    async with opened(authorization=PaAuthorization.BASIC) as authority:
        await ask(authority)
    assert sti_pa.logins() == 0


async def test_the_body_may_be_bare(sti_pa: StiPa, opened: Opened) -> None:
    async with opened(body=PaBody.BARE) as authority:
        await ask(authority)
    assert sti_pa.requests[1][2]["tktype"] == "TNAuthList"


async def test_our_authorization_goes_to_the_api_alone(sti_pa: StiPa, opened: Opened) -> None:
    async with opened() as authority:
        await ask(authority)
        await authority.crl(None, NOW)
    for path, request, _ in sti_pa.requests:
        if path.startswith("/download") or path.endswith("login"):
            assert "Authorization" not in request.headers


async def test_a_session_that_the_sti_pa_forgot_is_made_anew_once(
    sti_pa: StiPa, opened: Opened
) -> None:
    async with opened() as authority:
        await ask(authority)
        sti_pa.sessions.clear()
        await asyncio.gather(*(ask(authority, NOW + 10) for _ in range(3)))
        assert sti_pa.logins() == 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_session_that_is_never_taken_is_no_reason_to_go_on_logging_in(
    status: int, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/api/v1/account"] = lambda _: JSONResponse({}, status_code=status)
    async with opened() as authority:
        for each in (1, 2):
            with pytest.raises(PeerRefused) as caught:
                await ask(authority, NOW + 100)
            assert caught.value.reason == "STI_PA_REFUSED"
            assert sti_pa.logins() <= each


async def test_a_wrong_password_is_sent_once_an_hour_at_most(sti_pa: StiPa, opened: Opened) -> None:
    async with opened(password="wrong-one") as authority:
        for now in (NOW, NOW + 1, NOW + 3599):
            with pytest.raises(PeerRefused) as caught:
                await ask(authority, now)
            assert caught.value.reason == "STI_PA_LOGIN_REFUSED"
            assert caught.value.problem == (
                '{"status":"error","message":"wrong [removed]","code":17}'
            )
            assert_no_secret(caught.value, "wrong-one")
        assert sti_pa.logins() == 1
        with pytest.raises(PeerRefused):
            await ask(authority, NOW + 3600)
        assert sti_pa.logins() == 2


async def test_a_wrong_basic_password_is_sent_once(sti_pa: StiPa, opened: Opened) -> None:
    sti_pa.basic = True
    kind = PaAuthorization.BASIC
    async with opened(password="wrong-one", authorization=kind) as authority:
        for _ in range(3):
            with pytest.raises(PeerRefused) as caught:
                await ask(authority)
            assert caught.value.reason == "STI_PA_LOGIN_REFUSED"
            assert_no_secret(caught.value, base64.b64encode(f"{USER}:wrong-one".encode()).decode())
    assert len(sti_pa.requests) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (JSONResponse({"status": "failed"}), "STI_PA_LOGIN_REFUSED"),
        (JSONResponse({"status": "success"}), "STI_PA_ANSWER_INVALID"),
        (JSONResponse({"accessToken": "two\nlines"}), "STI_PA_ANSWER_INVALID"),
        (JSONResponse({"accessToken": 5}), "STI_PA_ANSWER_INVALID"),
        (Response("<html>"), "STI_PA_ANSWER_INVALID"),
        (Response("x" * 300_000), "STI_PA_ANSWER_INVALID"),
    ],
)
async def test_a_login_that_gives_no_session_is_refused(
    answer: Response, reason: str, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/api/v1/auth/login"] = lambda _: answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await ask(authority)
    assert caught.value.reason == reason
    assert_no_secret(caught.value, "two")


async def test_the_sti_pas_words_reach_the_operator_without_our_secrets(
    sti_pa: StiPa, opened: Opened
) -> None:
    def answer(request: Request) -> Response:
        words = {
            "status": "error",
            "message": f"SPC 1234 is not yours, {request.headers['Authorization']}\x1b[2J",
            "token": "abc",
            "accessToken": "def",
            "password": PASSWORD,
            "errors": ["eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjF9.c2ln"],
        }
        return JSONResponse(words, status_code=400)

    sti_pa.told["/api/v1/account"] = answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_REFUSED"
    assert json.loads(caught.value.problem) == {
        "status": "error",
        "message": "SPC 1234 is not yours, [removed]\x1b[2J",
        "token": "[removed]",
        "accessToken": "[removed]",
        "password": "[removed]",
        "errors": ["[removed]"],
    }
    assert "\x1b" not in caught.value.problem
    assert_no_secret(caught.value, "session-", "eyJ")


async def test_a_refusal_with_http_200_is_a_refusal(sti_pa: StiPa, opened: Opened) -> None:
    answer = {"status": "error", "message": "no such account", "token": ""}
    sti_pa.told["/api/v1/account"] = lambda _: JSONResponse(answer)
    async with opened() as authority:
        with pytest.raises(PeerRefused, match="account 1234") as caught:
            await ask(authority)
    assert "no such account" in caught.value.problem


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"status": "success"}),
        JSONResponse([]),
        Response("not json"),
        Response(b"\xff" * 10),
        Response("x" * 300_000),
        Response(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
        RedirectResponse("https://127.0.0.1/elsewhere"),
    ],
    ids=["no token", "list", "text", "octets", "too much", "compressed", "redirect"],
)
async def test_an_answer_that_is_none_is_refused(
    answer: Response, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/api/v1/account"] = lambda _: answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_ANSWER_INVALID"
    assert_no_secret(caught.value, "session-")


async def test_an_sti_pa_that_asks_for_an_eternity_is_asked_again_within_a_day(
    sti_pa: StiPa, opened: Opened
) -> None:
    headers = {"Retry-After": "9" * 400}
    sti_pa.told["/api"] = lambda _: Response("down", status_code=503, headers=headers)
    async with opened() as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.retry_after == DAY


@pytest.mark.parametrize("status", [408, 500, 502, 503])
async def test_an_sti_pa_in_trouble_is_asked_again_later(
    status: int, sti_pa: StiPa, opened: Opened
) -> None:
    headers = {"Retry-After": "120"}
    sti_pa.told["/api"] = lambda _: Response("down", status_code=status, headers=headers)
    async with opened() as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert (caught.value.reason, caught.value.retry_after) == ("STI_PA_UNAVAILABLE", 120.0)
    assert failure_class(caught.value) is FailureClass.AUTHORITY_UNREACHABLE


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_an_sti_pa_that_is_asked_too_often_is_asked_when_it_says(
    form: str, sti_pa: StiPa, opened: Opened
) -> None:
    wait = "90" if form == "seconds" else formatdate(time.time() + 90, usegmt=True)
    headers = {"Retry-After": wait}
    sti_pa.told["/api"] = lambda _: Response("slow down", status_code=429, headers=headers)
    async with opened() as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_RATE_LIMITED"
    assert 85 <= caught.value.retry_after <= 95
    assert failure_class(caught.value) is FailureClass.AUTHORITY_RATE_LIMITED


async def test_a_token_for_something_else_is_not_handed_on(sti_pa: StiPa, opened: Opened) -> None:
    sti_pa.claims = {"tktype": "TnAuthList"}
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await ask(authority)
    assert caught.value.reason == "SPC_TOKEN_REJECTED"
    assert caught.value.metadata["rule"] == "tktype"
    assert_no_secret(caught.value, "eyJ")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response("none", status_code=404), "STI_PA_REFUSED"),
        (Response("no certificate"), "STI_PA_ANSWER_INVALID"),
        (Response("x" * 200_000), "STI_PA_ANSWER_INVALID"),
        (Response(ROOT.pem), "SPC_TOKEN_REJECTED"),
    ],
)
async def test_a_token_whose_signer_cannot_be_had_is_not_used(
    answer: Response, reason: str, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/download"] = lambda _: answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await ask(authority)
    assert caught.value.reason == reason


@asynccontextmanager
async def tcp(serve: Callable[[asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """A TCP server that does not speak TLS."""
    server = await asyncio.start_server(lambda _, writer: serve(writer), "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_reset_connection_points_to_the_ip_allow_list(opened: Opened) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        # Closing with a linger time of zero sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with tcp(reset) as url, opened(url=url) as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_CONNECTION_RESET"
    assert "IP allow-list" in caught.value.next_step


async def test_a_silent_sti_pa_is_given_up(opened: Opened) -> None:
    writers = []

    async def silent(writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    async with tcp(silent) as url, opened(url=url, timeout=0.2) as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
        for writer in writers:
            writer.transport.abort()
    assert caught.value.reason == "STI_PA_TIMEOUT"


async def test_an_sti_pa_that_is_not_there_is_unavailable(opened: Opened) -> None:
    async with opened(url="https://127.0.0.1:9") as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_UNREACHABLE"


async def test_an_sti_pa_with_a_strangers_certificate_is_not_talked_to(
    sti_pa: StiPa, opened: Opened
) -> None:
    async with opened(tls_ca="") as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.reason == "STI_PA_TLS_FAILED"
    assert sti_pa.requests == []


async def token_file(sti_pa: StiPa, folder: Path, opened: Opened, *, bare: bool) -> str:
    async with opened() as authority:
        jwt = (await ask(authority)).jwt
    text = jwt + "\n" if bare else json.dumps({"status": "success", "token": jwt})
    (folder / "1234-acme.jwt").write_text(text)
    sti_pa.requests.clear()
    return str(folder / "{spc}-{profile}.jwt")


async def test_an_sti_pa_is_reached_through_the_proxy_of_the_environment(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy.running() as between:
        monkeypatch.setenv("HTTPS_PROXY", between.url)
        async with opened() as authority:
            assert (await ask(authority)).expires == NOW + 3600
        assert between.tunnels


async def test_every_path_of_the_api_can_be_another(sti_pa: StiPa, opened: Opened) -> None:
    async with opened(token_path="/x/{id}/token") as authority:
        with pytest.raises(PeerRefused):
            await ask(authority, account_id="1234")
    assert sti_pa.paths()[-2:] == ["/x/1234/token", "/api/v1/auth/logout"]
    async with opened(ca_list_path="/x/list", logout_path="/x/logout") as authority:
        await ask(authority)
        with pytest.raises(PeerRefused):
            await authority.trust_list(None, NOW)
    assert sti_pa.paths()[-2:] == ["/x/list", "/x/logout"]
    async with opened(login_path="/x/login") as authority:
        with pytest.raises(PeerRefused):
            await ask(authority)
    assert sti_pa.paths()[-1] == "/x/login"


@pytest.mark.parametrize(("seconds", "enough"), [(3600, True), (3601, False)])
async def test_how_long_a_token_must_live_is_a_setting(
    seconds: int, enough: bool, opened: Opened
) -> None:
    async with opened(min_token_seconds=seconds) as authority:
        with nullcontext() if enough else pytest.raises(PeerRefused, match="are needed"):
            await ask(authority)


async def test_a_crl_that_the_sti_pa_has_elsewhere_is_the_operators_to_configure(
    opened: Opened,
) -> None:
    async with opened(crl_url="https://elsewhere.example/crl") as authority:
        with pytest.raises(Misconfigured) as caught:
            await ask(authority)
    assert caught.value.reason == "CRL_URL_DIFFERS"
    assert "/download/v1/crl" in caught.value.message


@pytest.mark.parametrize("bare", [True, False])
async def test_a_token_may_come_from_a_file_and_is_checked_all_the_same(
    bare: bool, sti_pa: StiPa, opened: Opened, tmp_path: Path
) -> None:
    path = await token_file(sti_pa, tmp_path, opened, bare=bare)
    async with opened(token_file=path, user="") as authority:
        assert (await ask(authority)).expires == NOW + 3600
        with pytest.raises(PeerRefused) as caught:
            await ask(authority, NOW + 3500)
        assert caught.value.metadata["rule"] == "exp"
        assert "replace the file" in caught.value.next_step
        with pytest.raises(PeerRefused) as caught:
            await ask(authority, fingerprint="SHA256 00")
        assert caught.value.metadata["rule"] == "fingerprint"
    assert set(sti_pa.paths()) == {"/download/v1/certificate/signer.crt"}


async def test_a_token_file_that_is_not_there_yet_is_waited_for(
    opened: Opened, tmp_path: Path
) -> None:
    async with opened(token_file=str(tmp_path / "{spc}")) as authority:
        with pytest.raises(Unavailable) as caught:
            await ask(authority)
    assert caught.value.reason == "SPC_TOKEN_FILE_MISSING"


@pytest.mark.parametrize("content", ["", "nonsense", "{}", "\0", '{"token": ""}', "x" * 70_000])
async def test_a_token_file_without_a_token_is_the_operators_to_correct(
    content: str, opened: Opened, tmp_path: Path
) -> None:
    (tmp_path / "1234").write_text(content)
    async with opened(token_file=str(tmp_path / "{spc}")) as authority:
        with pytest.raises(Misconfigured) as caught:
            await ask(authority)
    assert caught.value.reason == "SPC_TOKEN_FILE_UNREADABLE"


async def test_a_token_file_is_never_looked_for_elsewhere(opened: Opened, tmp_path: Path) -> None:
    async with opened(token_file=str(tmp_path / "{profile}")) as authority:
        for profile in ("../x", "a/b", "", ".hidden"):
            with pytest.raises(Misconfigured):
                await ask(authority, profile=profile)
        (tmp_path / "folder").mkdir()
        with pytest.raises(Misconfigured):
            await ask(authority, profile="folder")


async def test_the_list_of_sti_cas_is_had_without_a_login(sti_pa: StiPa, opened: Opened) -> None:
    async with opened(password="wrong-one") as authority:
        accepted = await authority.trust_list(None, NOW)
    assert accepted == TrustList("us", 5, NOW + DAY, NOW, (STI_CA.pem,))
    assert sti_pa.logins() == 0


async def test_the_list_of_sti_cas_is_had_with_a_login_where_one_is_needed(
    sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.list_needs_login = True
    async with opened() as authority:
        assert (await authority.trust_list(None, NOW)).sequence == 5
    async with opened(user="") as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.trust_list(None, NOW)
    assert caught.value.reason == "STI_PA_REFUSED"


async def test_the_list_may_come_bare(sti_pa: StiPa, opened: Opened) -> None:
    sti_pa.told["/api/v1/ca-list"] = lambda _: Response(sti_pa.ca_list())
    async with opened() as authority:
        assert (await authority.trust_list(None, NOW)).sequence == 5


async def test_the_list_never_goes_back(sti_pa: StiPa, opened: Opened) -> None:
    async with opened() as authority:
        last = await authority.trust_list(None, NOW)
        sti_pa.sequence = 4
        with pytest.raises(PeerRefused) as caught:
            await authority.trust_list(last, NOW)
    assert caught.value.reason == "TRUST_LIST_ROLLBACK"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (JSONResponse({"status": "error", "message": "no"}), "STI_PA_REFUSED"),
        (JSONResponse({"status": "success"}), "STI_PA_ANSWER_INVALID"),
        (Response("{"), "STI_PA_ANSWER_INVALID"),
        (Response(""), "STI_PA_ANSWER_INVALID"),
        (Response("<html>Please sign in</html>"), "STI_PA_ANSWER_INVALID"),
        (Response("non.sen.se"), "TRUST_LIST_REJECTED"),
    ],
)
async def test_what_is_no_list_is_refused(
    answer: Response, reason: str, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/api/v1/ca-list"] = lambda _: answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.trust_list(None, NOW)
    assert caught.value.reason == reason


async def test_the_crl_is_accepted_from_the_signer_it_names(sti_pa: StiPa, opened: Opened) -> None:
    async with opened() as authority:
        accepted = await authority.crl(None, NOW)
        assert (accepted.authority, accepted.number) == ("us", "7")
        sti_pa.crl_number = 6
        with pytest.raises(PeerRefused) as caught:
            await authority.crl(accepted, NOW)
    assert caught.value.reason == "CRL_ROLLBACK"


async def test_a_crl_that_names_no_signer_is_checked_with_those_of_the_list(
    sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.crl_aia = False
    with_crl_signer = Response(SIGNER.pem + INTERMEDIATE.pem + CRL_SIGNER.pem)
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.crl(None, NOW)
    assert caught.value.metadata["rule"] == "signer"
    sti_pa.told["/download/v1/certificate/signer.crt"] = lambda _: with_crl_signer
    async with opened() as authority:
        assert (await authority.crl(None, NOW)).number == "7"


async def test_a_crl_whose_signer_cannot_be_fetched_is_not_used(
    sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/download/v1/certificate/"] = lambda _: Response("down", status_code=500)
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.crl(None, NOW)
    assert caught.value.metadata["rule"] == "signer"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response("gone", status_code=404), "STI_PA_REFUSED"),
        (JSONResponse({"status": "error"}), "CRL_REJECTED"),
        (Response(b"x" * 10_485_761), "STI_PA_ANSWER_INVALID"),
    ],
)
async def test_what_is_no_crl_is_refused(
    answer: Response, reason: str, sti_pa: StiPa, opened: Opened
) -> None:
    sti_pa.told["/download/v1/crl"] = lambda _: answer
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.crl(None, NOW)
    assert caught.value.reason == reason


async def test_signer_chains_are_fetched_once_an_hour(sti_pa: StiPa, opened: Opened) -> None:
    async with opened() as authority:
        for now in (NOW, NOW + 1, NOW + 3599):
            await authority.trust_list(None, now)
        assert sti_pa.paths().count("/download/v1/certificate/signer.crt") == 1
        await authority.trust_list(None, NOW + 3600)
        assert sti_pa.paths().count("/download/v1/certificate/signer.crt") == 2


async def test_signer_chains_in_memory_are_bounded(sti_pa: StiPa, opened: Opened) -> None:
    sti_pa.told["/download/v1/certificate/"] = lambda _: Response(SIGNER.pem + INTERMEDIATE.pem)
    async with opened() as authority:
        for each in (*range(17), 0):
            sti_pa.signer = f"signer-{each}"
            await authority.trust_list(None, NOW)
    assert sti_pa.paths().count("/download/v1/certificate/signer-0.crt") == 2


@pytest.mark.parametrize("x5u", ["https://", "https://me@127.0.0.1/x", "https://127.0.0.1:x/"])
async def test_an_x5u_that_cannot_be_fetched_is_refused(
    x5u: str, sti_pa: StiPa, opened: Opened
) -> None:
    header = {"alg": "ES256", "x5u": x5u}
    sti_pa.told["/api/v1/ca-list"] = lambda _: Response(sign_jws(SIGNER, header, {"exp": 1}))
    async with opened() as authority:
        with pytest.raises(PeerRefused) as caught:
            await authority.trust_list(None, NOW)
    assert caught.value.reason == "STI_PA_ANSWER_INVALID"


async def test_what_is_kept_in_memory_does_not_show_its_secrets(
    sti_pa: StiPa, opened: Opened
) -> None:
    async with opened() as authority:
        await ask(authority)
        session = authority._subscriber._session
    assert session is not None
    answer = Answer(200, b"session-1")
    for shown in (session, answer):
        assert "session-1" not in repr(shown) + repr(shown.__rich_repr__())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"url": "http://pa.example"}, "AUTHORITY_URL"),
        ({"url": ""}, "AUTHORITY_URL"),
        ({"tls_ca": "/no/such/file"}, "TLS_CA_UNREADABLE"),
    ],
)
async def test_settings_that_cannot_work_are_refused_at_once(
    other: dict[str, Any], reason: str, opened: Opened
) -> None:
    with pytest.raises(Misconfigured) as caught:
        await opened(**other).__aenter__()
    assert caught.value.reason == reason


async def test_a_user_that_the_settings_leave_out_is_asked_for_when_it_is_needed(
    opened: Opened,
) -> None:
    async with opened(user="") as authority:
        with pytest.raises(Misconfigured) as caught:
            await ask(authority)
    assert caught.value.reason == "AUTHORITY_USER"
    assert PASSWORD not in repr(vars(authority))
