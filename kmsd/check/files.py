"""Checks of what is on this host's disks: secrets, folders, TLS files. Blocking."""

import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kmsd.check.finding import Finding, Level, error, failed, ok, warning
from kmsd.config import mac_key, secret
from kmsd.errors import KmsdError
from kmsd.settings import Configuration, Tls

DAY = 86_400
SOON = 14 * DAY
"""A TLS certificate that ends within this many seconds is worth a warning."""
ROOM, NO_ROOM = 256 << 20, 16 << 20
"""Bytes free on a disk below which there is a warning, or an error."""
LARGEST = 1 << 20


def references(configuration: Configuration) -> dict[str, str]:
    """Every secret that is configured: setting to reference."""
    found = {"hsm.pin": configuration.hsm.pin, "store.password": configuration.store.password}
    for name, authority in configuration.authorities.items():
        found[f"authorities.{name}.password"] = authority.password
    for name, issuer in configuration.issuers.items():
        found[f"issuers.{name}.eab_mac_key"] = issuer.eab_mac_key
    return {name: reference for name, reference in found.items() if reference}


def is_out_of_sight(reference: str) -> bool:
    """A systemd credential, and this process was given none: an operator's shell."""
    return reference.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in os.environ


def secrets(configuration: Configuration) -> Iterator[Finding]:
    """Every secret can be read, by nobody else, and is what it should be."""
    for name, reference in references(configuration).items():
        if is_out_of_sight(reference):
            credential = reference.removeprefix("credential:")
            yield warning(
                "secrets",
                f"{name} is a systemd credential, which only the units see; not checked.",
                f"systemd-run --pipe -p LoadCredential={credential}:PATH kmsd check",
            )
            continue
        try:
            (mac_key if name.endswith("eab_mac_key") else secret)(reference, name)
        except KmsdError as refusal:
            yield failed("secrets", refusal)
        else:
            yield ok("secrets", f"{name} can be read.")


def folders(configuration: Configuration) -> Iterator[Finding]:
    """State, run and keyring folders exist, can be written, are not open to all, have room."""
    yield from _folder("state", Path(configuration.state), Level.ERROR)
    yield from _folder("run", Path(configuration.run), Level.WARNING)
    yield from _folder("keyring", Path(configuration.keyring), Level.WARNING)


def repository(configuration: Configuration) -> tuple[Finding, ...]:
    """Chains can be put where `repository.url` says, as far as that can be known."""
    url = urlsplit(configuration.repository.url)
    if url.scheme != "file":
        message = f"{url.scheme}://{url.netloc} is tried when the next chain is published."
        return (ok("repository", message),)
    path = Path(unquote(url.path))
    if not path.is_dir() and path.parent.is_dir():
        path = path.parent  # the folder itself is made with the first chain
    return tuple(_folder("repository", path, Level.ERROR, public=True))


def tls(configuration: Configuration, now: int) -> Iterator[Finding]:
    """TLS files can be read, belong together, and are valid. now: seconds UTC."""
    repository = configuration.repository
    own = [("signer.tls", configuration.signer.tls), ("client.tls", configuration.client.tls)]
    if repository.certificate:
        own.append(("repository", Tls(repository.certificate, repository.key, "")))
    trusted = {"repository.tls_ca": repository.tls_ca}
    for name, tls in own:
        if tls is not None:
            yield from _pair(name, tls, now)
            trusted[f"{name}.ca"] = tls.ca
    for name, authority in configuration.authorities.items():
        trusted[f"authorities.{name}.tls_ca"] = authority.tls_ca
        trusted[f"authorities.{name}.root"] = authority.root
    for name, issuer in configuration.issuers.items():
        trusted[f"issuers.{name}.tls_ca"] = issuer.tls_ca
        trusted[f"issuers.{name}.staging_root"] = issuer.staging_root
    for name, path in trusted.items():
        if path:
            yield from _certificates(name, path, now)


def _folder(name: str, path: Path, missing: Level, *, public: bool = False) -> Iterator[Finding]:
    what = f"folder {name}" if not public else name
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            yield error(what, f"{path} is no folder.")
            return
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"kmsd check")
            probe.flush()
        free = shutil.disk_usage(path).free
    except FileNotFoundError:
        made = "" if missing is Level.ERROR else "; it is made at the start"
        step = f"install -d -m 0750 -o kmsd -g kmsd {path}" if missing is Level.ERROR else ""
        yield Finding(missing, what, f"{path} does not exist{made}.", step)
        return
    except OSError as problem:
        step = f"Let the keeper's user write there: ls -ld {path}"
        yield error(what, f"{path} cannot be written ({problem.strerror}).", step)
        return
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        yield error(what, f"Everybody on this host can write in {path}.", f"chmod o-w {path}")
    if free < ROOM:
        level = Level.ERROR if free < NO_ROOM else Level.WARNING
        yield Finding(level, what, f"{path} has {free >> 20} MiB left.", f"df -h {path}")
    else:
        yield ok(what, f"{path} can be written, {free >> 20} MiB free.")


def _pair(name: str, tls: Tls, now: int) -> Iterator[Finding]:
    chain = yield from _certificates(f"{name}.certificate", tls.certificate, now, own=True)
    if is_out_of_sight(tls.key):
        yield warning("tls", f"{name}.key is a systemd credential; not checked.")
        return
    try:
        key = load_pem_private_key(secret(tls.key, f"{name}.key").encode(), None)
    except KmsdError as refusal:
        yield failed("tls", refusal)
    except (ValueError, TypeError):
        yield error("tls", f"{name}.key: {tls.key} is no private key in PEM without a passphrase.")
    else:
        if chain and key.public_key() != chain[0].public_key():
            yield error("tls", f"{name}.key is not the key of {tls.certificate}.")


def _certificates(
    name: str, path: str, now: int, *, own: bool = False
) -> Generator[Finding, None, list[x509.Certificate]]:
    try:
        with open(path, "rb") as file:
            found = x509.load_pem_x509_certificates(file.read(LARGEST))
    except OSError as problem:
        yield error("tls", f"{name}: {path} cannot be read ({problem.strerror}).")
        return []
    except ValueError:
        yield error("tls", f"{name}: {path} holds no certificates in PEM.")
        return []
    judged = found[:1] if own else found
    for certificate in judged:
        begin = int(certificate.not_valid_before_utc.timestamp())
        end = int(certificate.not_valid_after_utc.timestamp())
        days = (end - now) // DAY
        if now < begin:
            yield error("tls", f"{name}: {path} is not valid yet.", "Is this host's clock right?")
        elif now > end:
            yield error("tls", f"{name}: {path} expired {-days} days ago.", "Replace it.")
        elif end - now < SOON:
            yield warning("tls", f"{name}: {path} expires in {days} days.", "Replace it.")
        else:
            yield ok("tls", f"{name}: {path} is valid for {days} days more.")
    return found
