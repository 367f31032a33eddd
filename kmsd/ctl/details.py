"""The screens of `credential`, `explain` and `verify`: one thing, and why to believe it."""

from rich.console import Group, RenderableType

from kmsd.ctl.output import (
    AccountsDocument,
    Birth,
    Credential,
    CredentialDocument,
    ExplanationDocument,
    ForgottenDocument,
    VerificationDocument,
)
from kmsd.ctl.page import Page, facts, iso, iso_seconds
from kmsd.ctl.tables import trouble


def credential(document: CredentialDocument, page: Page) -> RenderableType:
    """All that is known of a credential: its life, its chain, and its key's birth record."""
    about = document.credential
    parts: list[RenderableType] = [facts(_life(about, page))]
    if about.trouble:
        parts += ["", trouble(about.trouble, page)]
    if document.certificates:
        rows = []
        for depth, certificate in enumerate(document.certificates):
            name = "chain" if depth == 0 else f"  by {depth}"
            until = f"until {page.when(certificate.not_after)}"
            rows.append((name, f"{certificate.subject}, serial {certificate.serial}, {until}", ""))
        top = document.certificates[-1]
        if top.issuer != top.subject:
            rows.append(("  by", f"{top.issuer} (not in the chain)", "dim"))
        parts += ["", facts(rows)]
    if document.birth:
        parts += ["", facts(_proof(document, document.birth, page))]
    return Group(*parts)


def explanations(document: ExplanationDocument, page: Page) -> RenderableType:
    """Why, what next, who, and what to type: a block for each credential."""
    parts: list[RenderableType] = []
    for one in document.explanations:
        since = f", since {page.when(one.since)}" if one.since else ""
        named = f"{page.short(one.credential)} of {document.profile}"
        rows = [
            ("credential", named if one.credential else f"none of {document.profile}", "bold"),
            ("state", f"{one.state}{since}", ""),
            ("why", one.why, ""),
            ("needs", one.needs, ""),
            ("who", WHO.get(one.who, one.who), ""),
        ]
        if one.next_at:
            rows.append(("when", page.when(one.next_at), ""))
        if one.command:
            rows.append(("next", one.command, "bold"))
        parts += ["", facts(rows)] if parts else [facts(rows)]
    return Group(*parts)


def accounts(document: AccountsDocument, page: Page) -> RenderableType:
    """Each account and the key it has now."""
    parts: list[RenderableType] = []
    for one in document.accounts:
        rows = [
            ("account", f"of {one.profile} at {one.issuer}", "bold"),
            ("url", one.url, ""),
            ("key id", one.key_id, ""),
            ("thumbprint", one.thumbprint, ""),
        ]
        parts += ["", facts(rows)] if parts else [facts(rows)]
    return Group(*parts)


def forgotten(document: ForgottenDocument, page: Page) -> RenderableType:
    """The numbers before and now."""
    before, after = document.before, document.after
    rows = [
        ("authority", after.authority, "bold"),
        ("STI-CA list", f"{before.sequence} before, {after.sequence} now", ""),
        ("until", page.when(after.list_expires_at), ""),
        ("CRL", f"{before.crl_number or 'none'} before, {after.crl_number or 'none'} now", ""),
    ]
    return facts(rows)


WHO = {
    "kmsd": "kmsd, by itself",
    "operator": "you",
    "hsm": "the HSM",
    "sti-pa": "the STI-PA",
    "sti-ca": "the STI-CA",
    "sti-cr": "the STI-CR, where chains are public",
    "signers": "the signers",
    "nobody": "nobody: nothing more comes",
}
"""Who can see to it, in words."""


def verification(document: VerificationDocument) -> RenderableType:
    """What holds, then the step that failed, or that all of them hold."""
    rows = [("holds", line, "green") for line in document.holds]
    if document.verified:
        rows.append(("verdict", "verifies", "bold green"))
    else:
        rows.append(("fails", document.message, "bold red"))
        rows.append(("SIP", f"{document.sip_code} {PHRASES.get(document.sip_code, '')}", ""))
        rows.append(("reason", document.reason, ""))
    rows += [(name, value, "") for name, value in document.facts.items()]
    if document.next_step:
        rows.append(("next", document.next_step, "bold"))
    return facts(rows)


PHRASES = {
    403: "Stale Date",
    428: "Use Identity Header",
    436: "Bad Identity Info",
    437: "Unsupported Credential",
    438: "Invalid Identity Header",
}
"""Response codes of RFC 8224 section 6.2.2."""


def _life(about: Credential, page: Page) -> list[tuple[str, str, str]]:
    since = f", signs since epoch {about.epoch}" if about.epoch else ""
    rows = [
        ("credential", about.id, "bold"),
        ("profile", f"{about.profile} (SPC {about.spc})", ""),
        ("state", f"{about.state}{since}", ""),
        ("begun", page.when(about.created_at), ""),
        ("issuer", about.issuer, ""),
        ("serial", about.serial, ""),
    ]
    if about.not_before and about.not_after:
        rows.append(("valid", f"{iso(about.not_before)} to {page.when(about.not_after)}", ""))
    rows += [
        ("x5u", about.x5u, ""),
        ("key id", about.key_id, ""),
        ("public key", f"SHA-256 {about.spki_sha256}" if about.spki_sha256 else "", ""),
    ]
    if about.revocation:
        revoked = f"{page.when(about.revocation.at)}: {about.revocation.reason}"
        rows.append(("revoked", revoked, "red"))
    if about.condemned:
        asked = f"{page.when(about.condemned.at)}: {about.condemned.reason}"
        rows.append(("condemned", f"{asked}; revoked when another one signs", "red"))
    if about.destroy_at:
        rows.append(("key goes", page.when(about.destroy_at), "yellow"))
    return [row for row in rows if row[1]]


def _proof(document: CredentialDocument, birth: Birth, page: Page) -> list[tuple[str, str, str]]:
    made = iso_seconds(birth.made_at) if birth.made_at else "unknown"
    set_to = [name for name, value in birth.attributes.items() if value]
    unset = [name for name, value in birth.attributes.items() if not value]
    rows = [
        ("born", f"{made} in token {birth.token} (serial {birth.serial}), {birth.module}", ""),
        ("label", birth.label, ""),
        ("is", " ".join(set_to) or "-", ""),
        ("is not", " ".join(unset) or "-", ""),
        ("made key", f"SHA-256 {birth.public_key_sha256}", ""),
    ]
    if document.certificates:
        same = document.certificates[0].spki_sha256 == birth.public_key_sha256
        words = "the leaf certificate carries the key that was made"
        wrong = "THE LEAF CERTIFICATE CARRIES ANOTHER KEY than the one that was made"
        rows.append(("proof", words if same else wrong, "green" if same else "bold red"))
    return rows
