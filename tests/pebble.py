"""A running pebble (an ACME server that is not ours), and what a client of it needs.

Pebble rejects good nonces on purpose; it knows DNS names only, so what is special about
STI-CAs is not tested against it.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

EAB_KEY_ID = "kid-1"
EAB_MAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


class SoftKey:
    """A P-256 key in memory, with what the client wants of a key."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.public_key = self.private.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )

    async def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def csr(self, *names: str) -> bytes:
        """A CSR (DER) for these DNS names."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        if names:
            san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(san, critical=False)
        return builder.sign(self.private, SHA256()).public_bytes(Encoding.DER)


@dataclass(frozen=True)
class HttpsIdentity:
    """Files (PEM) of an HTTPS server on 127.0.0.1 and localhost, and of the CA to trust."""

    ca: Path
    certificate: Path
    key: Path


def https_identity(folder: Path) -> HttpsIdentity:
    """A CA and a server certificate of it, in `folder`."""
    ca_key, key = SoftKey(), SoftKey()
    ca_name, name = _name("Test HTTPS CA"), _name("localhost")
    authority = (
        _certificate(ca_name, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(_subject_key_id(ca_key), critical=False)
        .sign(ca_key.private, SHA256())
    )
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    server = (
        _certificate(name, ca_name, key)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(_subject_key_id(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.private.public_key()),
            critical=False,
        )
        .sign(ca_key.private, SHA256())
    )
    identity = HttpsIdentity(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    identity.ca.write_bytes(authority.public_bytes(Encoding.PEM))
    identity.certificate.write_bytes(server.public_bytes(Encoding.PEM))
    identity.key.write_bytes(
        key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return identity


@dataclass(frozen=True)
class Pebble:
    """Where a running pebble is. directory, management: https URLs. ca: PEM file to trust."""

    directory: str
    management: str
    ca: Path


@contextmanager
def running_pebble(
    folder: Path, *, nonce_reject: int, external_accounts: bool = False
) -> Iterator[Pebble]:
    """Pebble on free loopback ports, rejecting `nonce_reject` percent of good nonces."""
    identity = https_identity(folder)
    port, management = _free_ports(2)
    config = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management}",
        "certificate": str(identity.certificate),
        "privateKey": str(identity.key),
        "httpPort": 5002,
        "tlsPort": 5001,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": external_accounts,
        "externalAccountMACKeys": {EAB_KEY_ID: EAB_MAC_KEY} if external_accounts else {},
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    environment = os.environ | {
        "PEBBLE_WFE_NONCEREJECT": str(nonce_reject),
        "PEBBLE_VA_ALWAYS_VALID": "1",
        "PEBBLE_VA_NOSLEEP": "1",
        "PEBBLE_AUTHZREUSE": "0",
    }
    log = folder / "pebble.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["pebble", "-config", str(folder / "pebble.json")],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        for needed in (port, management):
            _wait_until_open(needed, process, log)
        yield Pebble(
            f"https://127.0.0.1:{port}/dir", f"https://127.0.0.1:{management}", identity.ca
        )
    finally:
        process.terminate()
        process.wait(10)


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"pebble does not come up: {log.read_text()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_socket.getsockname()[1] for open_socket in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports


def _certificate(name: x509.Name, issuer: x509.Name, key: SoftKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _subject_key_id(key: SoftKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.private.public_key())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
