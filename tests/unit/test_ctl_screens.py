"""What operators see: every screen of kmsctl against golden text, at two widths and wide.

After a wanted change: `GOLDEN=write pytest tests/unit/test_ctl_screens.py`, then read the diff.
"""

import io
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kmsapi.v1 import admin_pb2 as pb
from rich.console import Console, RenderableType

from kmsd.ctl import answers, details, page, tables
from kmsd.ctl.output import Condition, VerificationDocument
from kmsd.ctl.page import Page

GOLDEN = Path(__file__).parent.parent / "golden" / "ctl"
NOW = 1_795_219_200  # 2026-11-21T00:00:00Z
HOUR, DAY = 3600, 86_400
ALPHA = "1a2b3c4d5e6f7a8b"
BETA = "9f8e7d6c5b4a3928"
X5U = "https://cr.example.net:8443/1234/1a2b3c4d5e6f7a8b.pem"

ACTIVE = pb.Credential(
    id=ALPHA,
    profile="alpha",
    spc="1234",
    state="active",
    key_id=ALPHA * 2,
    created_at=NOW - 11 * DAY,
    issuer="ca-one",
    serial="4f2a9c",
    not_before=NOW - 10 * DAY,
    not_after=NOW + 20 * DAY,
    x5u=X5U,
    spki_sha256="ab" * 32,
    epoch=12,
)
PROBLEM = '{"type":"urn:ietf:params:acme:error:unauthorized","detail":"atc.ca is true\x1b[31m"}'
COMING = pb.Credential(
    id=BETA,
    profile="beta-telecom-west",
    spc="567A",
    state="authorized",
    key_id=BETA * 2,
    created_at=NOW - 2 * HOUR,
    issuer="ca-two",
    trouble_reason="ACME_SERVER_ERROR",
    trouble="The STI-CA ca-two answered 503 to newOrder.",
    retry_at=NOW + 90,
    problem=PROBLEM,
    next_step="Nothing; kmsd tries again by itself.",
)
FAILED = pb.Credential(
    id="00112233445566aa",
    profile="gamma",
    spc="9999",
    state="failed",
    created_at=NOW - 3 * HOUR,
    trouble_reason="CHAIN_REJECTED",
    trouble="The issued chain names SPC 9998, not 9999.",
    artefact="/var/lib/kmsd/artefacts/00112233445566aa.pem",
    next_step="Ask the STI-CA why it issued for another code, then: kmsctl enroll gamma",
    destroy_at=NOW + DAY,
)
PROFILES = (
    pb.Profile(
        name="alpha",
        spc="1234",
        authority="sti-pa",
        issuers=["ca-one", "ca-two"],
        active=ACTIVE,
        next_step="renew",
        next_step_at=NOW + 9 * DAY,
        waits_for="two thirds of the certificate's lifetime",
    ),
    pb.Profile(
        name="beta-telecom-west",
        spc="567A",
        authority="sti-pa",
        issuers=["ca-two"],
        coming=COMING,
        next_step="order",
        next_step_at=NOW + 90,
        waits_for="the STI-CA ca-two to answer",
    ),
)
WELL = pb.Status(
    version="0.1.0",
    now=NOW,
    started_at=NOW - 3 * DAY,
    hsm=pb.HsmStatus(
        usable=True,
        token="kmsd",
        serial="0a1b2c3d",
        module="SoftHSM 2.6",
        keys=4,
        foreign_objects=2,
    ),
    epoch=12,
    signers=[
        pb.SignerStatus(index=1, alive=True, pid=4711, epoch=12, acknowledged_at=NOW - 60),
        pb.SignerStatus(index=2, alive=True, pid=4712, epoch=12, acknowledged_at=NOW - 60),
    ],
    trust=[
        pb.TrustStatus(
            authority="sti-pa",
            sequence=17,
            roots=12,
            list_fetched_at=NOW - HOUR,
            list_expires_at=NOW + 20 * HOUR,
            crl_number="5",
            crl_fetched_at=NOW - HOUR,
            crl_next_update=NOW + DAY,
        )
    ],
    profiles=PROFILES[:1],
)
BIRTH = pb.BirthRecord(
    label="kmsd alpha 1a2b3c4d",
    made_at=NOW - 11 * DAY,
    public_key=b"a public key",
    attributes={"CKA_SENSITIVE": True, "CKA_EXTRACTABLE": False, "CKA_LOCAL": True},
    module="SoftHSM 2.6",
    token="kmsd",
    serial="0a1b2c3d",
)


def in_trouble() -> pb.Status:
    """An HSM that is away, a signer behind, one down, no CRL, and two alarms."""
    status = pb.Status()
    status.CopyFrom(WELL)
    status.hsm.usable = False
    status.hsm.trouble = "C_OpenSession answers CKR_DEVICE_REMOVED since 2026-11-20T23:58Z."
    status.signers[0].epoch = 11
    status.signers[1].alive = False
    status.trust[0].crl_fetched_at = 0
    status.trust[0].trouble = "The STI-PA did not answer within 20 s."
    status.alarms.add(
        reason="HSM_AWAY",
        message="The HSM does not answer; signing goes on only in signers that hold a session.",
        since=NOW - 120,
    )
    status.alarms.add(
        reason="CERTIFICATE_EXPIRES",
        message="The certificate of alpha expires in 20 d and its renewal failed 9 times.",
        next_step="kmsctl credentials --profile alpha",
        subject="alpha",
        since=NOW - 5 * HOUR,
    )
    status.profiles.add().CopyFrom(PROFILES[1])
    return status


def standing_by() -> pb.Status:
    status = pb.Status()
    status.CopyFrom(WELL)
    status.standing_by = "The keeper on kms1 (process 4711) acts on this store."
    return status


def many_profiles() -> pb.Status:
    status = pb.Status()
    status.CopyFrom(WELL)
    for number in range(30):
        each = status.profiles.add()
        each.CopyFrom(PROFILES[0])
        each.name = f"tenant-{number:02}"
        each.active.not_after = NOW + (number + 21) * DAY
    return status


def _status(answer: pb.Status) -> Callable[[Page], RenderableType]:
    return lambda on: tables.status(answers.status(answer, "unix:/run/kmsd/keeper.sock"), on)


RETIRED = pb.Credential(
    id="77777777aaaaaaaa",
    profile="alpha",
    spc="1234",
    state="retired",
    created_at=NOW - 40 * DAY,
    issuer="ca-one",
    serial="4f2a01",
    not_before=NOW - 40 * DAY,
    not_after=NOW - 10,
    destroy_at=NOW + 5 * HOUR,
    revoked_at=NOW - HOUR,
    revocation_reason=4,
)
CONDEMNED = pb.Credential()
CONDEMNED.CopyFrom(ACTIVE)
CONDEMNED.condemned_at = NOW - 90
CONDEMNED.revocation_reason = 1
LISTED = [answers.credential(each) for each in (COMING, ACTIVE, CONDEMNED, FAILED, RETIRED)]
BORN = pb.Credential()
BORN.CopyFrom(ACTIVE)
BORN.birth.CopyFrom(BIRTH)

EXPLAINED = pb.Explanations(
    profile="beta-telecom-west",
    explanations=[
        pb.Explanation(
            credential=ALPHA,
            state="active",
            why="Its profile signs with it, under epoch 12.",
            needs=f"Its successor {BETA} is on its way (authorized).",
            who="sti-ca",
            command=f"kmsctl explain {BETA}",
            since=NOW - 10 * DAY,
            next_at=NOW + 90,
        ),
        pb.Explanation(
            credential=BETA,
            state="authorized",
            why="ca-two accepted the SPC token. The STI-CA ca-two answered 503. Tried 3 times.",
            needs="ca-two takes the CSR.\x1b[31m",
            who="sti-ca",
            since=NOW - 2 * HOUR,
        ),
    ],
)
NEVER = pb.Explanations(
    profile="gamma",
    explanations=[
        pb.Explanation(
            state="none",
            why="The profile has no credential: it was never enrolled.",
            needs="A person asks for its first one.",
            who="operator",
            command="kmsctl enroll gamma",
        )
    ],
)
CALENDAR = pb.Calendar(
    now=NOW,
    days=400,
    entries=[
        pb.Planned(at=NOW, profile="gamma", what="enroll", why="NOT_ENROLLED"),
        pb.Planned(
            at=NOW + 5 * HOUR,
            profile="alpha",
            credential="77777777aaaaaaaa",
            what="destroy_key",
            why="HOLDING_TIME",
        ),
        pb.Planned(
            at=NOW + 9 * DAY, profile="alpha", credential=ALPHA, what="renew", why="FRACTION"
        ),
        pb.Planned(
            at=NOW + 9 * DAY, profile="alpha", credential=ALPHA, what="retire", why="SUPERSEDED"
        ),
        pb.Planned(
            at=NOW + 20 * DAY, profile="alpha", credential=ALPHA, what="expire", why="NOT_AFTER"
        ),
        pb.Planned(at=NOW + 29 * DAY, profile="alpha", what="renew", why="FRACTION"),
    ],
    cut=True,
)
ACCOUNTS = pb.Accounts(
    accounts=[
        pb.Account(
            profile="alpha",
            issuer=issuer,
            url=f"https://{issuer}.example.net/acme/account/17",
            key_id=ALPHA * 2,
            thumbprint="NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        )
        for issuer in ("ca-one", "ca-two")
    ]
)
FORGOTTEN = pb.ForgottenTrust(
    before=pb.TrustStatus(authority="sti-pa", sequence=1795, crl_number="88"),
    after=pb.TrustStatus(authority="sti-pa", sequence=1, crl_number="2", list_expires_at=NOW + DAY),
)
SCREENS: dict[str, Callable[[Page], RenderableType]] = {
    "status-well": _status(WELL),
    "status-in-trouble": _status(in_trouble()),
    "status-standing-by": _status(standing_by()),
    "status-of-nothing": _status(pb.Status(version="0.1.0", now=NOW)),
    "status-of-many": _status(many_profiles()),
    "profiles": lambda on: tables.profiles(map(answers.profile, PROFILES), on),
    "credentials": lambda on: tables.credentials(LISTED, on),
    "credentials-none": lambda on: tables.credentials((), on),
    "credential-active": lambda on: details.credential(answers.detailed(BORN), on),
    "credential-condemned": lambda on: details.credential(answers.detailed(CONDEMNED), on),
    "credential-failed": lambda on: details.credential(answers.detailed(FAILED), on),
    "credential-retired": lambda on: details.credential(answers.detailed(RETIRED), on),
    "credential-in-trouble": lambda on: details.credential(answers.detailed(COMING), on),
    "explanations": lambda on: details.explanations(answers.explanations(EXPLAINED), on),
    "explanation-none": lambda on: details.explanations(answers.explanations(NEVER), on),
    "plan": lambda on: tables.plan(answers.plan(CALENDAR), on),
    "plan-of-nothing": lambda on: tables.plan(answers.plan(pb.Calendar(now=NOW, days=1)), on),
    "accounts": lambda on: details.accounts(answers.accounts(ACCOUNTS), on),
    "trust-forgotten": lambda on: details.forgotten(answers.forgotten(FORGOTTEN), on),
    "verification-fails": lambda on: details.verification(
        VerificationDocument(
            verified=False,
            sip_code=437,
            holds=("the header is well formed", "the chain was fetched"),
            reason="CHAIN_UNTRUSTED",
            message="The chain ends in no trusted STI-CA.",
            next_step="kmsctl status",
        )
    ),
}


@pytest.mark.parametrize("width", ["80", "120", "wide"])
@pytest.mark.parametrize("screen", SCREENS)
def test_every_screen_looks_as_reviewed(screen: str, width: str) -> None:
    golden = GOLDEN / f"{screen}.{width}.txt"
    drawn = draw(SCREENS[screen], width)
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(drawn)
    assert drawn == golden.read_text()


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{screen}.{width}.txt" for screen in SCREENS for width in ("80", "120", "wide")}
    assert {file.name for file in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize("screen", SCREENS)
def test_no_screen_is_wider_than_the_terminal(screen: str) -> None:
    assert max(map(len, draw(SCREENS[screen], "80").splitlines())) <= 80


@pytest.mark.parametrize("screen", SCREENS)
def test_no_foreign_control_character_reaches_the_terminal(screen: str) -> None:
    assert draw(SCREENS[screen], "wide").replace("\n", "").isprintable()


def test_wide_shows_whole_ids() -> None:
    for screen in ("profiles", "credentials", "status-well"):
        assert ALPHA in draw(SCREENS[screen], "wide")


def draw(screen: Callable[[Page], RenderableType], width: str) -> str:
    columns = 4000 if width == "wide" else int(width)
    on = Page(datetime.fromtimestamp(NOW, UTC), columns, wide=width == "wide")
    out = io.StringIO()
    Console(file=out, width=columns, highlight=False, markup=False, emoji=False).print(screen(on))
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda status: None, Condition.OK),
        (lambda status: status.alarms.add(reason="X", message="y"), Condition.DEGRADED),
        (lambda status: status.alarms.add(next_step="do it"), Condition.NEEDS_PERSON),
        (lambda status: setattr(status.hsm, "usable", False), Condition.DEGRADED),
        (lambda status: setattr(status.signers[0], "alive", False), Condition.DEGRADED),
        (lambda status: setattr(status.signers[1], "epoch", 11), Condition.DEGRADED),
    ],
)
def test_the_condition_is_derived_from_what_is_seen(
    change: Callable[[pb.Status], object], expected: Condition
) -> None:
    status = pb.Status()
    status.CopyFrom(WELL)
    change(status)
    assert answers.condition(status) is expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"),
        (1, "in 1 s"),
        (119, "in 119 s"),
        (120, "in 2 min"),
        (2 * HOUR - 1, "in 119 min"),
        (47 * HOUR, "in 47 h"),
        (3 * DAY - 1, "in 2 d"),
        (-30 * DAY, "30 d ago"),
    ],
)
def test_a_distance_in_time_is_rounded_down(seconds: int, words: str) -> None:
    now = datetime.fromtimestamp(NOW, UTC)
    assert page.relative(now + timedelta(seconds=seconds), now) == words
