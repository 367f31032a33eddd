"""The certificate an STI-CA makes (ATIS-1000080 6.4.1, PROTOCOL 3.5), and how to get it wrong.

A `Plan` is the certificate before it is signed. Without a fault it follows the profile to the
letter; each value of the switch `chain` is one function that changes one thing in the plan, or
in the chain made of it, for an acceptance gate to find.
"""

import datetime
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmsd.lab import pki, tnauth
from kmsd.lab.csr import Request
from kmsd.lab.pki import Identity
from kmsd.lab.state import Order
from kmsd.lab.world import World

_TN_AUTH_LIST = x509.ObjectIdentifier(tnauth.OID)
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Plan:
    """A certificate about to be signed; `extensions` by a short name, value and critical."""

    subject: x509.Name
    key: ec.EllipticCurvePublicKey
    serial: int
    not_before: datetime.datetime
    not_after: datetime.datetime
    issuer: Identity
    extensions: dict[str, tuple[x509.ExtensionType, bool]]

    def put(self, name: str, value: x509.ExtensionType, *, critical: bool = False) -> "Plan":
        return replace(self, extensions=self.extensions | {name: (value, critical)})

    def drop(self, name: str) -> "Plan":
        return replace(self, extensions={n: e for n, e in self.extensions.items() if n != name})

    def sign(self) -> x509.Certificate:
        return pki.certify(
            self.subject,
            self.key,
            self.issuer.key,
            self.issuer.certificate.subject,
            (self.not_before, self.not_after),
            list(self.extensions.values()),
            self.serial,
        )


def issue(request: Request, order: Order, world: World) -> tuple[x509.Certificate, bytes]:
    """The certificate for an order that is ready, and the PEM chain to be downloaded."""
    plan = _plan(request, order, world)
    fault = world.switches.chain
    plan = _PLAN_FAULTS.get(fault, _unchanged)(plan)
    certificate = plan.sign()
    chain = pki.pem([certificate, plan.issuer.certificate])
    match fault:
        case "leaf_last":
            chain = pki.pem([plan.issuer.certificate, certificate])
        case "no_intermediate":
            chain = pki.pem([certificate])
        case "private_key":
            chain += pki.private_pem(ec.generate_private_key(ec.SECP256R1()))
        case "empty":
            chain = b""
        case "garbage":
            chain = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        case "foreign_ca":
            foreign = replace(plan, issuer=world.pki.foreign_ca)
            aki = pki.authority_key_id(foreign.issuer.certificate)
            certificate = foreign.put("aki", aki).sign()
            chain = pki.pem([certificate, foreign.issuer.certificate])
    return certificate, chain


def validity(order: Order, world: World) -> tuple[datetime.datetime, datetime.datetime]:
    """notBefore and notAfter: the order's where it has them, else the switch. Raises ValueError."""
    start, end = _moment(order.not_before), _moment(order.not_after)
    not_before = start or world.today()
    not_after = end or not_before + datetime.timedelta(seconds=world.switches.certificate_seconds)
    if not_after <= max(not_before, world.today()):
        raise ValueError("notAfter is before notBefore, or over")
    if not_after > world.pki.ca.certificate.not_valid_after_utc:
        raise ValueError("notAfter is after the STI-CA's own end")
    return not_before, not_after


def _moment(text: str) -> datetime.datetime | None:
    """RFC 3339, whole seconds, UTC."""
    if not text:
        return None
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone (RFC 3339)")
    return moment.astimezone(datetime.UTC).replace(microsecond=0)


def _plan(request: Request, order: Order, world: World) -> Plan:
    not_before, not_after = validity(order, world)
    issuer = world.pki.ca
    plan = Plan(
        subject=request.subject if list(request.subject) else _subject(order.spc),
        key=request.key,
        serial=x509.random_serial_number(),
        not_before=not_before,
        not_after=not_after,
        issuer=issuer,
        extensions={},
    )
    crldp = pki.crl_distribution_point(world.urls.crl, pki.CRL_ISSUER)
    tn_auth_list = x509.UnrecognizedExtension(_TN_AUTH_LIST, order.der)
    return (
        plan.put("bc", x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .put("ku", pki.key_usage("digital_signature"), critical=True)
        .put("policies", pki.policies(pki.POLICY))
        .put("ski", x509.SubjectKeyIdentifier.from_public_key(request.key))
        .put("aki", pki.authority_key_id(issuer.certificate))
        .put("crldp", crldp)
        .put("tnauthlist", tn_auth_list)
    )


def _subject(spc: str, country: str = "US") -> x509.Name:
    """Made by the STI-CA when the CSR has none; the suffix keeps it unique."""
    names = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Lab Voice"),
        x509.NameAttribute(NameOID.COMMON_NAME, f"SHAKEN {spc} {secrets.token_hex(4)}"),
    ]
    if country:
        names.insert(0, x509.NameAttribute(NameOID.COUNTRY_NAME, country))
    return x509.Name(names)


def _unchanged(plan: Plan) -> Plan:
    return plan


def _other_key(plan: Plan) -> Plan:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return replace(plan, key=key).put("ski", x509.SubjectKeyIdentifier.from_public_key(key))


def _list_of(*spcs: str) -> x509.UnrecognizedExtension:
    """A TNAuthList of several codes; the lab's encoder makes lists of one."""
    entries = b"".join(tnauth.encode_spc(spc)[2:] for spc in spcs)
    return x509.UnrecognizedExtension(_TN_AUTH_LIST, bytes((0x30, len(entries))) + entries)


def _critical(plan: Plan) -> Plan:
    return plan.put("tnauthlist", plan.extensions["tnauthlist"][0], critical=True)


def _expired(plan: Plan) -> Plan:
    return replace(
        plan,
        not_before=plan.not_before - 2 * _DAY,
        not_after=plan.not_before - datetime.timedelta(seconds=1),
    )


def _crldp(plan: Plan, url: str, issuer: x509.Name | None) -> Plan:
    return plan.put("crldp", pki.crl_distribution_point(url, issuer))


def _crl_url(plan: Plan) -> str:
    value = plan.extensions["crldp"][0]
    assert isinstance(value, x509.CRLDistributionPoints)  # noqa: S101  put there by _plan
    return str((value[0].full_name or [])[0].value)


_V1_1 = x509.ObjectIdentifier("2.16.840.1.114569.1.1.1")
_FOREIGN_POLICY = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")

_PLAN_FAULTS: dict[str, Callable[[Plan], Plan]] = {
    "other_key": _other_key,
    "wrong_spc": lambda plan: plan.put("tnauthlist", _list_of("0000")),
    "two_spcs": lambda plan: plan.put("tnauthlist", _list_of("1234", "0000")),
    "no_tnauthlist": lambda plan: plan.drop("tnauthlist"),
    "critical_tnauthlist": _critical,
    "expired": _expired,
    "not_yet_valid": lambda plan: replace(
        plan, not_before=plan.not_before + _DAY, not_after=plan.not_after + 2 * _DAY
    ),
    "no_policy": lambda plan: plan.drop("policies"),
    "wrong_policy": lambda plan: plan.put("policies", pki.policies(_FOREIGN_POLICY)),
    "two_policies": lambda plan: plan.put("policies", pki.policies(pki.POLICY, _V1_1)),
    "key_usage": lambda plan: plan.put(
        "ku", pki.key_usage("digital_signature", "content_commitment"), critical=True
    ),
    "no_key_usage": lambda plan: plan.drop("ku"),
    "ca_true": lambda plan: plan.put("bc", x509.BasicConstraints(True, None), critical=True),
    "no_basic_constraints": lambda plan: plan.drop("bc"),
    "no_crldp": lambda plan: plan.drop("crldp"),
    "crldp_without_issuer": lambda plan: _crldp(plan, _crl_url(plan), None),
    "wrong_crldp": lambda plan: _crldp(plan, "https://localhost/no/crl", pki.CRL_ISSUER),
    "no_ski": lambda plan: plan.drop("ski"),
    "no_aki": lambda plan: plan.drop("aki"),
    "extra_extension": lambda plan: plan.put(
        "eku", x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    ),
    "subject_without_spc": lambda plan: replace(plan, subject=_subject("0000")),
    "subject_without_country": lambda plan: replace(
        plan, subject=_subject(_spc_of(plan), country="")
    ),
    "short_serial": lambda plan: replace(plan, serial=1 + secrets.randbelow(2**31)),
}


def _spc_of(plan: Plan) -> str:
    value = plan.extensions["tnauthlist"][0]
    return tnauth.read_spc(value.public_bytes())
