"""Verifiers that share no code with kmsd: OpenSSL, secsipidx (Kamailio's and OpenSIPS's STI-VS
library) and joserfc.
"""

import base64
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc import jws
from joserfc.jwk import ECKey

from kmsd.lab import Lab


def fetch(lab: Lab, url: str) -> httpx.Response:
    """What an https URL of the lab serves."""
    with httpx.Client(verify=ssl.create_default_context(cafile=lab.facts.tls_ca)) as client:
        return client.get(url)


def openssl_says(lab: Lab, chain: str, folder: Path) -> str:
    """What `openssl verify` says of a chain, with the lab's STI-CA root trusted; "OK" when good."""
    path = folder / "openssl-chain.pem"
    path.write_text(chain)
    # -x509_strict: the rules of RFC 5280 that OpenSSL otherwise lets pass.
    words: list[str | Path] = [
        "-x509_strict",
        "-CAfile",
        lab.facts.ca_root,
        "-untrusted",
        path,
        path,
    ]
    done = subprocess.run(["openssl", "verify", *words], capture_output=True, text=True)
    said = done.stdout + done.stderr
    return "OK" if done.returncode == 0 and said == f"{path}: OK\n" else said


def secsipidx_says(lab: Lab, identity: str, x5u: str, folder: Path) -> str:
    """What `secsipidx -check` says; "ok" when good.

    It fetches the chain from `x5u` itself, checks it up to the lab's STI-CA root at the present
    time and against the STI-PA's CRL, then the signature, and that iat is within a minute.
    """
    crl = folder / "crl.pem"
    crl.write_bytes(fetch(lab, lab.facts.crl_url).content)
    value = folder / "identity"
    value.write_text(identity)
    words: list[str | Path] = ["-check", "-fidentity", value, "-fpubkey", x5u, "-expire", "60"]
    words += ["-cert-verify", "23", "-ca-file", lab.facts.ca_root, "-crl-file", crl]
    done = subprocess.run(
        ["secsipidx", *words],
        env={"PATH": "/usr/bin:/bin", "SSL_CERT_FILE": lab.facts.tls_ca},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (done.stdout == "ok\n")
    return done.stdout.strip()


def joserfc_reads(identity: str, chain: str) -> tuple[dict[str, Any], bytes]:
    """Header and payload of the token in an Identity header value; the signature held, for the
    key of the leaf. Raises joserfc's errors."""
    token = identity.partition(";")[0]
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    key = ECKey.import_key(leaf.public_bytes(Encoding.PEM))
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    read = jws.deserialize_compact(token, key, registry=registry)
    return dict(read.headers()), read.payload


def der_serial(lab: Lab, serial: str) -> x509.RevokedCertificate | None:
    """The entry of a serial number (hex) on the lab's CRL, if there is one."""
    content = fetch(lab, lab.facts.crl_url).content
    return x509.load_pem_x509_crl(content).get_revoked_certificate_by_serial_number(int(serial, 16))


def spki(birth: dict[str, Any]) -> bytes:
    """The public key of a birth record as kmsctl prints it: DER SubjectPublicKeyInfo."""
    return base64.b64decode(birth["public_key"])
