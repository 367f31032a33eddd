"""The CA of the lab's HTTPS, and of mutual TLS between the demo's callers and signers.

Nothing here has to do with STI certificates: these are ordinary server and client
certificates (RFC 5280), with a SPIFFE URI in the client's subjectAltName.
"""

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmsd.lab import pki

_DAYS = datetime.timedelta(days=397)
_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class TlsFiles:
    """PEM files of one TLS endpoint; `ca` is whom it trusts."""

    certificate: Path
    key: Path
    ca: Path


class TlsAuthority:
    """Issues TLS certificates into its folder: `<name>.crt`, `<name>.key`, and `ca.crt`."""

    def __init__(self, folder: Path, now: datetime.datetime) -> None:
        """Takes the CA in `folder`, or makes one there."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._now = now
        self._ca = pki.kept(
            folder / "ca",
            _name("Lab TLS CA"),
            None,
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
                (pki.key_usage("key_cert_sign", "crl_sign"), True),
            ],
            now,
        )
        self.ca = folder / "ca.crt"

    def server(
        self,
        name: str,
        dns: Iterable[str] = ("localhost",),
        ips: Iterable[str] = ("127.0.0.1", "::1"),
    ) -> TlsFiles:
        """A server certificate for these names and addresses, good for a client as well."""
        names = [x509.DNSName(each) for each in dns]
        addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in ips]
        return self._issue(name, [*names, *addresses], [_SERVER, _CLIENT])

    def client(self, name: str, uri: str = "", dns: str = "") -> TlsFiles:
        """A client certificate.

        uri: its identity, `spiffe://lab/<name>` unless given; dns: the same as a DNS name,
        `<name>.lab` unless given; the CN is `name`.
        """
        identity = x509.UniformResourceIdentifier(uri or f"spiffe://lab/{name}")
        return self._issue(name, [identity, x509.DNSName(dns or f"{name}.lab")], [_CLIENT])

    def _issue(
        self,
        name: str,
        names: list[x509.GeneralName],
        usages: list[x509.ObjectIdentifier],
    ) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: pki.Extensions = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (pki.key_usage("digital_signature"), True),
            (x509.ExtendedKeyUsage(usages), False),
            (x509.SubjectAlternativeName(names), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (pki.authority_key_id(self._ca.certificate), False),
        ]
        certificate = pki.certify(
            _name(name),
            key.public_key(),
            self._ca.key,
            self._ca.certificate.subject,
            (self._now - datetime.timedelta(hours=1), self._now + _DAYS),
            extensions,
        )
        files = TlsFiles(self._folder / f"{name}.crt", self._folder / f"{name}.key", self.ca)
        pki.write_private(files.key, pki.private_pem(key))
        files.certificate.write_bytes(pki.pem([certificate]))
        return files


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
