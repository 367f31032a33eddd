"""What the values in kmsd.toml must be, one by one and together. Pure.

One line a problem, `path: what is wrong`; never with the value of what may be a secret.
"""

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import SplitResult, parse_qsl, urlsplit

from kmsd import maintenance
from kmsd.config import shape, syntax
from kmsd.config.shape import below, similar
from kmsd.errors import KmsdError
from kmsd.settings import (
    PRESETS,
    Authority,
    Caller,
    Configuration,
    Hsm,
    Issuer,
    IssuerRules,
    Profile,
    Repository,
    Store,
    SubjectRule,
)
from kmsd.tnauthlist import check_spc

TYPES = ("shaken", "base", "div", "rph", "rcd")
DAY = 86_400


def problems(configuration: Configuration) -> Iterator[str]:
    """Everything that makes the configuration unusable."""
    for path, table in (
        ("authorities", configuration.authorities),
        ("issuers", configuration.issuers),
        ("profiles", configuration.profiles),
    ):
        for name in table:
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
                yield (
                    f"{below(path, name)}: a name is 1 to 63 lower-case letters, digits and "
                    "hyphens, and begins with no hyphen"
                )
    yield from _folders(configuration)
    yield from _store(configuration.store)
    yield from _hsm(configuration.hsm)
    for name, authority in configuration.authorities.items():
        yield from _authority(authority, below("authorities", name))
    for name, issuer in configuration.issuers.items():
        yield from _issuer(issuer, below("issuers", name))
    for name, profile in configuration.profiles.items():
        yield from _profile(profile, configuration, below("profiles", name))
    yield from _repository(configuration.repository)
    yield from _servers(configuration)
    for index, caller in enumerate(configuration.callers):
        yield from _caller(caller, configuration, f"callers[{index}]")


def warnings(configuration: Configuration) -> tuple[str, ...]:
    """What is allowed and may still not be meant."""
    return tuple(_warnings(configuration))


def _warnings(configuration: Configuration) -> Iterator[str]:
    spcs = Counter(profile.spc for profile in configuration.profiles.values())
    granted = {name for caller in configuration.callers for name in caller.profiles}
    for name, profile in configuration.profiles.items():
        path = below("profiles", name)
        if spcs[profile.spc] > 1:
            yield f"{path}.spc: {profile.spc} is the code of {spcs[profile.spc]} profiles"
        if not granted & {name, "*"}:
            yield f"{path}: no [[callers]] entry lets anybody sign for it"
        country = configuration.authorities[profile.authority].country
        if country and profile.subject.country != country:
            yield f"{path}.subject.country: certificates of {profile.authority} have C={country}"
        rules = [configuration.issuers[issuer].resolved() for issuer in profile.issuers]
        by_template = any(one.csr_subject is SubjectRule.TEMPLATE for one in rules)
        if by_template and not profile.subject.organization:
            yield f"{path}.subject.organization: is empty; a certificate must have one O"
    if syntax.port(urlsplit(configuration.repository.public_url)) not in (443, 8443):
        yield "repository.public_url: verifiers take chains from ports 443 and 8443 only"
    store = urlsplit(configuration.store.url)
    if not store.scheme.startswith("postgresql"):
        if configuration.store.password:
            yield "store.password: is asked for by no SQLite"
    elif not _is_private(store):
        yield (
            "store.url: without ?sslmode=verify-full&sslrootcert=/path/of/ca.pem, whoever is "
            "between can read the store and change it"
        )
    if configuration.signer.plaintext:
        yield "signer.plaintext: whoever is on this host can have calls signed"


def _is_private(store: SplitResult) -> bool:
    """Whether nobody can be between us and the PostgreSQL of this URL."""
    query = dict(parse_qsl(store.query))
    host = store.hostname or query.get("hostaddr") or query.get("host", "/")
    here = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    return here or query.get("sslmode") == "verify-full"


def _folders(configuration: Configuration) -> Iterator[str]:
    for name in ("state", "run"):
        if not getattr(configuration, name):
            yield f"{name}: is empty"


def _store(store: Store) -> Iterator[str]:
    scheme, _, rest = store.url.partition(":")
    if scheme not in ("", "sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg"):
        yield "store.url: begins with sqlite:/// or postgresql://"
    if "@" in rest and ":" in rest.removeprefix("//").rsplit("@", 1)[0]:
        yield "store.url: holds a password; leave it out, and say in store.password where it is"
    yield from syntax.reference(store.password, "store.password")


def _hsm(hsm: Hsm) -> Iterator[str]:
    if not hsm.module:
        yield "hsm.module: is empty; write the path of the PKCS#11 module"
    if not 1 <= len(hsm.token.encode()) <= 32:
        yield "hsm.token: a token label has 1 to 32 bytes"
    yield from syntax.reference(hsm.pin, "hsm.pin", needed=True)
    yield from syntax.within(hsm.threads, 1, 1024, "hsm.threads")
    for attribute, value in hsm.template.items():
        path = below("hsm.template", attribute)
        if not re.fullmatch(r"CKA_[A-Z0-9_]+", attribute):
            yield f"{path}: is no name of an attribute; they begin with CKA_"
        if (attribute, value) in {("CKA_EXTRACTABLE", True), ("CKA_SENSITIVE", False)}:
            yield f"{path}: would let private keys leave the HSM"
    for variable in hsm.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            yield f"{below('hsm.environment', variable)}: is no name of a variable"


def _authority(authority: Authority, path: str) -> Iterator[str]:
    if not authority.root:
        yield f"{path}.root: is empty; write the path of the pinned STI-PA root certificate"
    yield from syntax.https(authority.url, f"{path}.url")
    if not authority.token_file:
        if not authority.user:
            yield f"{path}.user: is needed to log in at the STI-PA"
        yield from syntax.reference(authority.password, f"{path}.password", needed=True)
    else:
        yield from syntax.reference(authority.password, f"{path}.password")
    if authority.crl_url:
        yield from syntax.https(authority.crl_url, f"{path}.crl_url", query=True)
    for name in ("login_path", "logout_path", "token_path", "ca_list_path"):
        if not getattr(authority, name).startswith("/"):
            yield f"{path}.{name}: begins with a slash"
    yield from syntax.placeholders(authority.token_path, {"id"}, f"{path}.token_path")
    yield from syntax.placeholders(authority.token_file, {"spc", "profile"}, f"{path}.token_file")
    yield from syntax.within(authority.timeout, 0.1, 600, f"{path}.timeout", "seconds")
    yield from syntax.within(
        authority.min_token_seconds, 0, DAY, f"{path}.min_token_seconds", "seconds"
    )
    if not authority.policy_oids:
        yield f"{path}.policy_oids: is empty; no certificate would be accepted"
    for index, oid in enumerate(authority.policy_oids):
        if not re.fullmatch(r"[0-2](\.(0|[1-9][0-9]*))+", oid):
            yield f"{path}.policy_oids[{index}]: is no OID"
    yield from syntax.country(authority.country, f"{path}.country")


def _issuer(issuer: Issuer, path: str) -> Iterator[str]:
    yield from syntax.https(issuer.directory, f"{path}.directory", query=True)
    if issuer.staging_directory:
        staging = f"{path}.staging_directory"
        yield from syntax.https(issuer.staging_directory, staging, query=True)
    if issuer.staging_root and not issuer.staging_directory:
        yield f"{path}.staging_root: is of no use without staging_directory"
    if issuer.preset not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        yield f"{path}.preset: there are: {known}{similar(issuer.preset, list(PRESETS))}"
    faults = list(shape.faults(IssuerRules, issuer.rules, f"{path}.rules"))
    yield from faults
    if not faults and issuer.preset in PRESETS:
        rules = issuer.resolved()
        yield from syntax.within(
            rules.validity_days, 0, 3650, f"{path}.rules.validity_days", "days"
        )
        if not rules.chain_media_types:
            yield f"{path}.rules.chain_media_types: is empty"
    for index, contact in enumerate(issuer.contact):
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*:\S+", contact):
            yield f"{path}.contact[{index}]: is no URL; write mailto:somebody@example.com"
    if bool(issuer.eab_key_id) != bool(issuer.eab_mac_key):
        yield f"{path}: eab_key_id and eab_mac_key go together"
    yield from syntax.reference(issuer.eab_mac_key, f"{path}.eab_mac_key")
    yield from syntax.within(issuer.timeout, 0.1, 600, f"{path}.timeout", "seconds")
    yield from syntax.within(issuer.poll_limit, 1, DAY, f"{path}.poll_limit", "seconds")


def _profile(profile: Profile, configuration: Configuration, path: str) -> Iterator[str]:
    try:
        check_spc(profile.spc)
    except KmsdError as error:
        yield f"{path}.spc: {error.message}"
    yield from syntax.known(profile.authority, configuration.authorities, f"{path}.authority")
    if not profile.issuers:
        yield f"{path}.issuers: is empty; name at least one STI-CA"
    for index, issuer in enumerate(profile.issuers):
        yield from syntax.known(issuer, configuration.issuers, f"{path}.issuers[{index}]")
        if issuer in profile.issuers[:index]:
            yield f"{path}.issuers[{index}]: is named twice"
    if not re.fullmatch(r"[A-Za-z0-9._~-]{0,64}", profile.account_id):
        yield f"{path}.account_id: has a character that cannot stand in a URL, or over 64"
    yield from syntax.country(profile.subject.country, f"{path}.subject.country")
    for name, longest in (("organization", 64), ("state", 128), ("locality", 128)):
        value = getattr(profile.subject, name)
        if len(value) > longest or not value.isprintable():
            yield f"{path}.subject.{name}: has at most {longest} printable characters"
    policy = f"{path}.policy"
    yield from syntax.within(profile.policy.renew_at, 0.01, 0.99, f"{policy}.renew_at")
    yield from syntax.within(profile.policy.jitter, 0, 0.5, f"{policy}.jitter")
    yield from syntax.within(profile.policy.floor, 0.01, 0.9, f"{policy}.floor")
    for index, window in enumerate(profile.policy.windows):
        try:
            maintenance.parse(window)
        except KmsdError as error:
            yield f"{policy}.windows[{index}]: {error.message}"
    yield from syntax.within(profile.policy.key_pool, 0, 100, f"{policy}.key_pool", "keys")
    yield from syntax.within(
        profile.policy.hold_key_days, 0, 3650, f"{policy}.hold_key_days", "days"
    )
    yield from syntax.within(profile.policy.restore_days, 0, 3650, f"{policy}.restore_days", "days")


def _repository(repository: Repository) -> Iterator[str]:
    path = "repository"
    if repository.url and not re.match(r"file:///|(s3|gs|az)://[^/]", repository.url):
        yield f"{path}.url: begins with file:///, s3://, gs:// or az://"
    if "@" in repository.url:
        yield f"{path}.url: holds an @; credentials do not belong here"
    for option in repository.options:
        if re.search(r"secret|password|token|account_key|sas", option.lower()):
            yield f"{below(f'{path}.options', option)}: a secret; use the environment instead"
    yield from syntax.https(repository.public_url, f"{path}.public_url")
    if not repository.public_url.endswith("/"):
        yield f"{path}.public_url: ends with a slash"
    yield from syntax.address(repository.listen, f"{path}.listen")
    if bool(repository.certificate) != bool(repository.key):
        yield f"{path}: certificate and key go together"
    yield from syntax.within(
        repository.max_age_seconds, DAY, 3650 * DAY, f"{path}.max_age_seconds", "seconds"
    )


def _servers(configuration: Configuration) -> Iterator[str]:
    signer, keeper = configuration.signer, configuration.keeper
    if not signer.listen:
        yield "signer.listen: is empty"
    for index, address in enumerate(signer.listen):
        path = f"signer.listen[{index}]"
        wrong = list(syntax.address(address, path))
        yield from wrong
        if not wrong and signer.plaintext and not syntax.is_loopback(address):
            yield f"{path}: is not loopback; without TLS, nothing else may be listened on"
    if signer.tls is None and not signer.plaintext:
        yield "signer.tls: is missing; signers serve with mutual TLS"
    yield from syntax.within(signer.processes, 0, 1024, "signer.processes")
    yield from syntax.within(signer.frame_items, 1, 4096, "signer.frame_items")
    yield from syntax.within(
        signer.freshness_seconds, 1, DAY, "signer.freshness_seconds", "seconds"
    )
    yield from syntax.within(signer.trace_every, 0, 10**9, "signer.trace_every")
    socket = keeper.listen.removeprefix("unix:")
    if socket == keeper.listen or not socket:
        yield "keeper.listen: write unix:/path/of/the.sock; the keeper serves on this host only"
    elif len(socket.encode()) > 100:
        yield "keeper.listen: a socket's path has at most 100 bytes"
    if not re.fullmatch(r"0?[0-7]{2}0", keeper.socket_mode):
        yield 'keeper.socket_mode: an octal mode without rights for others, such as "0660"'
    yield from syntax.within(keeper.tick_seconds, 0.01, 3600, "keeper.tick_seconds", "seconds")
    for index, target in enumerate(configuration.client.targets):
        yield from syntax.address(target, f"client.targets[{index}]")


def _caller(caller: Caller, configuration: Configuration, path: str) -> Iterator[str]:
    if not caller.id or not caller.id.isprintable() or caller.id != caller.id.strip():
        yield f"{path}.id: write a URI, a DNS name or CN=... of the client certificate"
    if not caller.profiles:
        yield f"{path}.profiles: is empty"
    for index, profile in enumerate(caller.profiles):
        if profile != "*":
            yield from syntax.known(profile, configuration.profiles, f"{path}.profiles[{index}]")
    if not caller.types:
        yield f"{path}.types: is empty"
    for index, type_ in enumerate(caller.types):
        if type_ not in TYPES:
            yield f"{path}.types[{index}]: there are: {', '.join(TYPES)}"
    if caller.attest not in ("A", "B", "C"):
        yield f"{path}.attest: is A, B or C"
