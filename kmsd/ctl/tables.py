"""The screens of kmsctl: documents as rich renderables for people.

Each function takes a document (or part of one) and the page, and makes no call. Programs take
`--output json` instead: this text may change in any release.
"""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from kmsd.ctl.output import (
    Alarm,
    Condition,
    Credential,
    Hsm,
    PlanDocument,
    Profile,
    Signer,
    StatusDocument,
    Trouble,
    TrustMaterial,
)
from kmsd.ctl.page import Page, count, duration, facts, iso, relative, table, text

ON_ONE_SCREEN = 6
"""Profiles that `status` lists, the most urgent first (twice as many where one takes one line);
`profiles` lists them all."""

_CONDITIONS = {
    Condition.OK: ("all is well", "bold green"),
    Condition.DEGRADED: ("degraded", "bold yellow"),
    Condition.NEEDS_PERSON: ("needs a person", "bold red"),
}
_WHATS = {"enroll": "red", "renew": "green", "retire": "dim"}
_STATES = {"active": "green", "failed": "red", "doomed": "yellow", "destroyed": "dim"}


def status(document: StatusDocument, page: Page) -> RenderableType:
    """Keeper, HSM, signers, trust, alarms and the most urgent profiles on one screen."""
    words, style = _CONDITIONS[document.condition]
    up = ""
    if document.started_at:
        up = f", up {duration(int((document.now - document.started_at).total_seconds()))}"
    rows: list[tuple[str, str, str]] = [
        ("", words, style),
        ("keeper", f"kmsd {document.version} on {document.keeper}{up}", ""),
        ("hsm", _hsm(document.hsm), "" if document.hsm.usable else "red"),
    ]
    if document.standing_by:
        rows.insert(2, ("keeper", f"stands by: {document.standing_by}", "yellow"))
    rows += [("signers", *line) for line in _signers(document.signers, document.epoch, page)]
    rows += [("trust", *line) for material in document.trust for line in _trust(material, page)]
    urgent = sorted(document.profiles, key=_urgency)
    room = ON_ONE_SCREEN * 2 if page.roomy else ON_ONE_SCREEN
    hidden = len(urgent[room:])
    parts: list[RenderableType] = [facts(rows)]
    for alarm in document.alarms:
        parts += ["", _alarm(alarm, page)]
    parts += ["", _profiles(urgent[:room], page)]
    if hidden:
        parts.append(text(f"and {count(hidden, 'more profile')}: kmsctl profiles", "dim"))
    return Group(*parts)


def profiles(listed: Iterable[Profile], page: Page) -> RenderableType:
    """What each profile signs with, until when, the next step and what it waits for; below,
    what holds up a credential that is on its way."""
    several = tuple(listed)
    held_up = [each.coming for each in several if each.coming and each.coming.trouble]
    below = [line for coming in held_up for line in ("", _held_up(coming, page))]
    return Group(_profiles(several, page), *below)


def credentials(listed: Iterable[Credential], page: Page) -> RenderableType:
    several = tuple(listed)
    if not several:
        return text("No credentials yet. Get a profile's first one: kmsctl enroll PROFILE")
    columns = ["id", "profile", "SPC", "state", "valid until"]
    if page.roomy:
        columns += ["issuer", "serial"]
    if page.wide:
        columns += ["begun", "key id", "x5u"]
    rows = table(*columns, "note", keep=(0, 2, 3, 4))
    for credential in several:
        cells = [
            text(page.short(credential.id)),
            text(credential.profile),
            text(credential.spc),
            text(credential.state, _STATES.get(credential.state, "")),
            _until(credential, page),
        ]
        if page.roomy:
            cells += [text(credential.issuer or "-"), text(credential.serial or "-")]
        if page.wide:
            begun = page.when(credential.created_at)
            cells += [text(begun), text(credential.key_id), text(credential.x5u or "-")]
        rows.add_row(*cells, text(_note(credential, page)))
    return rows


def plan(document: PlanDocument, page: Page) -> RenderableType:
    """The calendar, a line an entry."""
    if not document.entries:
        return text(f"Nothing will happen in the next {count(document.days, 'day')}.")
    rows = table("when", "profile", "what", "credential", "why", keep=(0, 2, 3))
    for one in document.entries:
        rows.add_row(
            text(page.stacked(one.at)),
            text(one.profile),
            text(one.what.replace("_", " "), _WHATS.get(one.what, "")),
            text(page.short(one.credential) or "to come"),
            text(one.why),
        )
    if not document.cut:
        return rows
    more = "There is more in that time: ask for fewer days, or for one --profile."
    return Group(rows, text(more, "dim"))


def trouble(about: Trouble, page: Page) -> RenderableType:
    """Why it failed, the peer's words as they came, and what to do."""
    rows = [("why", about.message, "red"), ("reason", about.reason, "")]
    if about.problem:
        rows.append(("peer said", about.problem, ""))
    if about.artefact:
        rows.append(("kept", about.artefact, ""))
    if about.retry_at:
        rows.append(("tried again", page.when(about.retry_at), ""))
    if about.next_step:
        rows.append(("next", about.next_step, "bold"))
    return facts(rows)


def _profiles(several: Sequence[Profile], page: Page) -> RenderableType:
    if not several:
        return text("No profiles are configured. Add one under [profiles] in kmsd.toml.")
    last = ("coming", "next step", "waits for") if page.roomy else ("next step",)
    rows = table("profile", "SPC", "signs with", "until", *last, keep=(1, 2, 3))
    for profile in several:
        active = profile.active
        signs = text(page.short(active.id), "green") if active else text("nothing", "red")
        row = (text(profile.name), text(profile.spc), signs, _until(active, page))
        coming = profile.coming
        on_the_way = f"{page.short(coming.id)} {coming.state}" if coming else ""
        step = _next_step(profile, page)
        if page.roomy:
            cells = (on_the_way, step, profile.waits_for)
            rows.add_row(*row, *(text(cell or "-") for cell in cells))
            continue
        # A step whose time is known waits for that time: in a narrow table that is enough.
        lines = [on_the_way, step]
        if profile.waits_for and (coming or not profile.next_step_at):
            lines.append(f"waits for {profile.waits_for}")
        rows.add_row(*row, text("\n".join(filter(None, lines)) or "-"))
    return rows


def _next_step(profile: Profile, page: Page) -> str:
    at = profile.next_step_at
    if not at:
        return profile.next_step
    line = f"{profile.next_step} {relative(at, page.now)}"
    return f"{line} ({iso(at)})" if page.wide else f"{line}\nat {iso(at)}"


def _hsm(hsm: Hsm) -> str:
    foreign = ""
    if hsm.foreign_objects:
        foreign = f", {count(hsm.foreign_objects, 'foreign object')} left alone"
    if not hsm.usable:
        return f"NOT USABLE: {hsm.trouble or 'no reason given'}"
    serial = f" (serial {hsm.serial})" if hsm.serial else ""
    module = f", {hsm.module}" if hsm.module else ""
    return f"token {hsm.token}{serial}{module}: {count(hsm.keys, 'key')}{foreign}"


def _signers(signers: tuple[Signer, ...], epoch: int, page: Page) -> list[tuple[str, str]]:
    if not signers:
        return [("none is running: systemctl start kmsd.target", "red")]
    well = [signer for signer in signers if signer.alive and signer.epoch == epoch]
    lines = [(f"{len(well)} of {len(signers)} sign under epoch {epoch}", "")]
    for signer in signers:
        if not signer.alive:
            lines.append((f"#{signer.index} is down; systemd restarts it", "red"))
        elif signer.epoch != epoch:
            since = page.when(signer.acknowledged_at, "never acknowledged")
            behind = f"#{signer.index} (pid {signer.pid}) is on epoch {signer.epoch}: {since}"
            lines.append((behind, "yellow"))
    return lines


def _trust(material: TrustMaterial, page: Page) -> list[tuple[str, str]]:
    listed = "no STI-CA list yet"
    if material.list_fetched_at:
        roots = count(material.roots, "root")
        until = page.when(material.list_expires_at, "never")
        listed = f"STI-CA list {material.sequence} ({roots}) until {until}"
    crl = "no CRL yet"
    if material.crl_fetched_at:
        crl = f"CRL {material.crl_number} until {page.when(material.crl_next_update, 'unknown')}"
    lines = [(f"{material.authority}: {listed}", ""), (f"{material.authority}: {crl}", "")]
    if material.trouble:
        lines.append((f"last refresh failed: {material.trouble}", "yellow"))
    return lines


def _alarm(alarm: Alarm, page: Page) -> RenderableType:
    style = "red" if alarm.next_step else "yellow"
    about = f" ({alarm.subject})" if alarm.subject else ""
    since = f", since {page.when(alarm.since)}" if alarm.since else ""
    rows = [("ALARM", f"{alarm.message}", style), ("reason", f"{alarm.reason}{about}{since}", "")]
    if alarm.next_step:
        rows.append(("next", alarm.next_step, "bold"))
    return facts(rows)


def _held_up(credential: Credential, page: Page) -> RenderableType:
    short = page.short(credential.id)
    heading = f"{credential.profile}: {short} is {credential.state} and did not get further"
    if credential.state == "failed":
        heading = f"{credential.profile}: {short} failed"
    inner = trouble(credential.trouble, page) if credential.trouble else ""
    return Group(text(heading, "bold"), inner)


def _urgency(profile: Profile) -> tuple[bool, bool, float, str]:
    """Sorts what cannot sign first, then what is in trouble, then by expiry."""
    troubled = bool(profile.coming and profile.coming.trouble)
    ends = profile.active.not_after if profile.active else None
    return (profile.active is not None, not troubled, ends.timestamp() if ends else 0, profile.name)


def _until(credential: Credential | None, page: Page) -> Text:
    ends = credential.not_after if credential else None
    return text(page.stacked(ends), "red" if ends and ends <= page.now else "")


def _note(credential: Credential, page: Page) -> str:
    notes = []
    if credential.revocation:
        notes.append(f"revoked: {credential.revocation.reason}")
    if credential.rehearsal:
        notes.append("rehearsal")
    if credential.condemned:
        notes.append(f"condemned: {credential.condemned.reason}")
    if credential.destroy_at:
        notes.append(f"key destroyed {page.brief(credential.destroy_at)}")
    if credential.trouble:
        notes.append(credential.trouble.reason or credential.trouble.message)
    return "\n".join(notes) or "-"
