"""The parties that talk to the lab in its tests: a subscriber, and a bare ACME client.

On cryptography and httpx alone, from the RFCs: neither kmsd's code nor the lab's is used, so
that a mistake in one does not hide the same mistake in the other.
"""

import base64
import hashlib
import hmac
import json
import ssl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from kmsd.lab import Facts, Lab

TN_AUTH_LIST = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.26")
DER = {"1234": bytes.fromhex("3008a006160431323334"), "567A": bytes.fromhex("3008a006160435363741")}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    point = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    return {"crv": "P-256", "kty": "EC", "x": b64(point[1:33]), "y": b64(point[33:])}


def es256(key: ec.EllipticCurvePrivateKey, data: str) -> str:
    r, s = decode_dss_signature(key.sign(data.encode(), ec.ECDSA(hashes.SHA256())))
    return b64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def flattened(
    key: ec.EllipticCurvePrivateKey, header: dict[str, Any], payload: bytes, *, dot: bool = True
) -> dict[str, str]:
    protected, body = b64(json.dumps(header).encode()), b64(payload)
    text = f"{protected}.{body}" if body or dot else protected
    return {"protected": protected, "payload": body, "signature": es256(key, text)}


def compact(
    key: ec.EllipticCurvePrivateKey, header: dict[str, Any], payload: dict[str, Any]
) -> str:
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{text}.{es256(key, text)}"


def decoded(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and payload of a compact JWS, not verified."""
    head, body, _ = token.split(".")
    return json.loads(unb64(head)), json.loads(unb64(body))


def fingerprint(key: ec.EllipticCurvePrivateKey, kind: str = "jwk-thumbprint") -> str:
    if kind == "spki":
        data = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    else:
        data = json.dumps(jwk(key), separators=(",", ":"), sort_keys=True).encode()
    return "SHA256 " + hashlib.sha256(data).digest().hex(":").upper()


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


@contextmanager
def web(facts: Facts, timeout: float = 10.0) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=facts.tls_ca)
    with httpx.Client(verify=context, timeout=timeout, trust_env=False) as client:
        yield client


def make_csr(
    key: ec.EllipticCurvePrivateKey,
    spc: str = "1234",
    *,
    ca: bool | None = None,
    common_name: str | None = None,
    subject: bool = True,
    der: bytes | None = None,
) -> bytes:
    name = []
    if subject:
        cn = common_name or f"SHAKEN {spc} {uuid.uuid4().hex[:8]}"
        name = [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Voice of Tests"),
            x509.NameAttribute(NameOID.COMMON_NAME, cn),
        ]
    wanted = DER.get(spc, b"") if der is None else der
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(name))
    if wanted:
        builder = builder.add_extension(x509.UnrecognizedExtension(TN_AUTH_LIST, wanted), False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class Subscriber:
    """An operator's account at the STI-PA."""

    facts: Facts
    web: httpx.Client
    access: str = ""

    def login(self) -> str:
        password = Path(self.facts.pa_password_file).read_text()
        body = {"userId": self.facts.pa_user, "password": password}
        answer = self.web.post(f"{self.facts.pa_url}/api/v1/auth/login", json=body)
        assert answer.json()["status"] == "success"
        self.access = answer.json()["accessToken"]
        return self.access

    def ask(self, account: str, atc: dict[str, Any]) -> httpx.Response:
        return self.web.post(
            f"{self.facts.pa_url}/api/v1/account/{account}/token",
            json={"atc": atc},
            headers={"Authorization": self.access, "Accept": "application/jose+json"},
        )

    def token(self, key: ec.EllipticCurvePrivateKey, spc: str = "1234", **atc: Any) -> str:
        if not self.access:
            self.login()
        asked = {
            "tktype": "TNAuthList",
            "tkvalue": b64(DER[spc]),
            "ca": False,
            "fingerprint": fingerprint(key),
        } | atc
        answer = self.ask(spc, asked)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["token"]
        return token


@dataclass
class Acme:
    """RFC 8555 as bare as it gets; every reply is handed back, refusals too."""

    facts: Facts
    web: httpx.Client
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    kid: str = ""
    dot: bool = True
    directory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = self.web.get(self.facts.ca_directory).json()

    def nonce(self) -> str:
        return self.web.head(self.directory["newNonce"]).headers["Replay-Nonce"]

    def header(self, to: str, /, **changes: Any) -> dict[str, Any]:
        who = {"kid": self.kid} if self.kid else {"jwk": jwk(self.key)}
        header = {"alg": "ES256", "nonce": self.nonce(), "url": to} | who | changes
        return {name: value for name, value in header.items() if value is not None}

    def send(self, url: str, message: dict[str, str]) -> httpx.Response:
        media_type = {"Content-Type": "application/jose+json"}
        return self.web.post(url, content=json.dumps(message), headers=media_type)

    def post(
        self, url: str, payload: dict[str, Any] | None, *, by_key: Any = None
    ) -> httpx.Response:
        """A signed POST (None: POST-as-GET), repeated as long as the nonce does not please."""
        data = b"" if payload is None else json.dumps(payload).encode()
        while True:
            header = self.header(url)
            if by_key is not None:
                header = {**header, "jwk": jwk(by_key)}
                header.pop("kid", None)
            message = flattened(by_key or self.key, header, data, dot=self.dot)
            answer = self.send(url, message)
            if problem(answer) != "badNonce":
                return answer

    def register(self, **payload: Any) -> httpx.Response:
        answer = self.post(self.directory["newAccount"], payload)
        self.kid = answer.headers.get("Location", "")
        return answer

    def binding(self, secret: bytes, kid: str, url: str = "") -> dict[str, str]:
        """An external account binding (RFC 8555 section 7.3.4)."""
        header = {"alg": "HS256", "kid": kid, "url": url or self.directory["newAccount"]}
        head, body = (b64(json.dumps(part).encode()) for part in (header, jwk(self.key)))
        signature = b64(hmac.new(secret, f"{head}.{body}".encode(), hashlib.sha256).digest())
        return {"protected": head, "payload": body, "signature": signature}

    def order(self, value: str = "", **more: Any) -> httpx.Response:
        identifier = {"type": "TNAuthList", "value": value or b64(DER["1234"])}
        return self.post(self.directory["newOrder"], {"identifiers": [identifier], **more})

    def answer(self, order: dict[str, Any], token: str, name: str = "tkauth") -> dict[str, Any]:
        """Answers the order's challenge; the challenge when it is final."""
        authorization = self.post(order["authorizations"][0], None).json()
        (challenge,) = authorization["challenges"]
        reply = self.post(challenge["url"], {name: token})
        assert reply.status_code == 200, reply.text
        return self.settled(challenge["url"])

    def settled(self, url: str) -> dict[str, Any]:
        while True:
            body: dict[str, Any] = self.post(url, None).json()
            if body["status"] not in ("processing", "pending"):
                return body
            time.sleep(0.02)

    def finalize(self, order: dict[str, Any], csr: bytes) -> httpx.Response:
        return self.post(order["finalize"], {"csr": b64(csr)})


@dataclass
class Enrolled:
    """A certificate and everything on the way to it."""

    acme: Acme
    key: ec.EllipticCurvePrivateKey
    order_url: str
    order: dict[str, Any]
    download: httpx.Response
    chain: list[x509.Certificate]

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def der(self) -> bytes:
        return self.leaf.public_bytes(serialization.Encoding.DER)


def enroll(
    lab: Lab, client: httpx.Client, spc: str = "1234", *, parse: bool = True, **more: Any
) -> Enrolled:
    """From a new account to a chain, the RFCs' way."""
    acme = Acme(lab.facts, client)
    acme.register()
    placed = acme.order(b64(DER[spc]), **more)
    assert placed.status_code == 201, placed.text
    token = Subscriber(lab.facts, client).token(acme.key, spc)
    assert acme.answer(placed.json(), token)["status"] == "valid"
    key = new_key()
    answer = acme.finalize(placed.json(), make_csr(key, spc))
    assert answer.status_code == 200, answer.text
    return collect(acme, key, placed.headers["Location"], parse=parse)


def collect(
    acme: Acme, key: ec.EllipticCurvePrivateKey, order_url: str, *, parse: bool = True
) -> Enrolled:
    order = acme.settled(order_url)
    download = acme.post(order["certificate"], None)
    chain = x509.load_pem_x509_certificates(download.content) if parse else []
    return Enrolled(acme, key, order_url, order, download, chain)


def problem(answer: httpx.Response) -> str:
    """The last part of the problem's type; empty when the reply is none."""
    if "problem+json" not in answer.headers.get("content-type", ""):
        return ""
    name: str = answer.json()["type"]
    return name.removeprefix("urn:ietf:params:acme:error:")
