"""kmsctl as operators and programs run it, against an Admin service on a unix socket."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from kmsapi.v1 import admin_pb2 as pb
from kmsapi.v1.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server

import kmsd
from kmsd.answers import rich_status
from kmsd.ctl import connection, main, output
from kmsd.ctl.app import application
from kmsd.ctl.failure import MEANINGS
from kmsd.ctl.invocation import hoisted
from kmsd.errors import Invalid, KmsdError, NotFound, PeerRefused, Unavailable
from tests.unit.test_ctl_screens import (
    ACCOUNTS,
    ACTIVE,
    ALPHA,
    BORN,
    CALENDAR,
    COMING,
    EXPLAINED,
    FAILED,
    FORGOTTEN,
    PROFILES,
    RETIRED,
    WELL,
)

REVOKED = RETIRED
KMSCTL = Path(sys.executable).with_name("kmsctl")
MAN = Path(kmsd.__file__).parent / "ctl" / "kmsctl.1"


class Keeper(AdminServicer):
    """An Admin service that answers what a test puts into it, and remembers what was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.forget()

    def forget(self) -> None:
        self.asked: list[Any] = []
        self.refusal: KmsdError | None = None
        self.alarms: list[pb.Alarm] = []
        self.steps: list[pb.Progress] = []
        self.trust = pb.Trust()
        self.lingers = 0.0
        self.delay = 0.0

    def GetStatus(self, request: Any, context: Any) -> pb.Status:
        self._met(request, context)
        status = pb.Status()
        status.CopyFrom(WELL)
        status.alarms.extend(self.alarms)
        return status

    def ListProfiles(self, request: Any, context: Any) -> pb.ListProfilesResponse:
        self._met(request, context)
        return pb.ListProfilesResponse(profiles=PROFILES)

    def ListCredentials(self, request: Any, context: Any) -> pb.ListCredentialsResponse:
        self._met(request, context)
        return pb.ListCredentialsResponse(credentials=[COMING, ACTIVE])

    def GetCredential(self, request: Any, context: Any) -> pb.Credential:
        self._met(request, context)
        return BORN

    def Explain(self, request: Any, context: Any) -> pb.Explanations:
        self._met(request, context)
        return EXPLAINED

    def Plan(self, request: Any, context: Any) -> pb.Calendar:
        self._met(request, context)
        return CALENDAR

    def Enroll(self, request: Any, context: Any) -> Iterator[pb.Progress]:
        self._met(request, context)
        yield from self.steps
        time.sleep(self.lingers)

    Rotate = Enroll
    Rollback = Enroll
    Rehearse = Enroll

    def Revoke(self, request: Any, context: Any) -> Iterator[pb.Progress]:
        self._met(request, context)
        yield from self.steps or [step(REVOKED, "retired", "Revoked.", done=True)]

    def Destroy(self, request: Any, context: Any) -> pb.Credential:
        self._met(request, context)
        return ACTIVE

    Restore = Destroy

    def RollAccountKey(self, request: Any, context: Any) -> pb.Accounts:
        self._met(request, context)
        return ACCOUNTS

    def ForgetTrust(self, request: Any, context: Any) -> pb.ForgottenTrust:
        self._met(request, context)
        return FORGOTTEN

    def GetTrust(self, request: Any, context: Any) -> pb.Trust:
        self._met(request, context)
        return self.trust

    def _met(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        time.sleep(self.delay)
        if self.refusal:
            status = rich_status(self.refusal)
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(getattr(grpc.StatusCode, self.refusal.code), status.message)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    path = tmp_path_factory.mktemp("run") / "keeper.sock"
    keeper = Keeper(f"unix:{path}")
    server = grpc.server(ThreadPoolExecutor(4))
    add_AdminServicer_to_server(keeper, server)
    server.add_insecure_port(keeper.address)
    server.start()
    yield keeper
    server.stop(None).wait()


@pytest.fixture
def keeper(service: Keeper) -> Keeper:
    service.forget()
    return service


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kmsctl(
    keeper: Keeper, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Runs one command line in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("KMSD_CONFIG", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["--keeper", keeper.address, *arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


# Looking


def test_status_of_a_healthy_key_room_ends_with_0(kmsctl: Run) -> None:
    code, out, err = kmsctl("status")
    assert (code, err) == (0, "")
    assert "all is well" in out
    assert "\x1b" not in out


def test_an_alarm_that_heals_itself_ends_status_with_3(keeper: Keeper, kmsctl: Run) -> None:
    keeper.alarms = [pb.Alarm(reason="CRL_OLD", message="The CRL is old.")]
    code, out, _ = kmsctl("status")
    assert code == 3
    assert "CRL_OLD" in out


def test_an_alarm_with_a_next_step_ends_status_with_4(keeper: Keeper, kmsctl: Run) -> None:
    keeper.alarms = [pb.Alarm(reason="PIN_LOCKED", message="Locked.", next_step="Call the SO.")]
    code, out, _ = kmsctl("status")
    assert code == 4
    assert "Call the SO." in out


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["status"], "status"),
        (["profiles"], "profiles"),
        (["credentials", "--profile", "alpha", "--all"], "credentials"),
        (["credential", "1a2b"], "credential"),
        (["revoke", "1a2b", "--reason", "superseded", "--yes"], "revoke"),
        (["destroy", "1a2b", "--yes"], "destroy"),
        (["restore", "1a2b"], "restore"),
        (["explain", "alpha"], "explain"),
        (["account", "roll", "alpha"], "account roll"),
        (["trust", "forget", "sti-pa", "--yes"], "trust forget"),
        (["plan", "--days", "400", "--profile", "alpha"], "plan"),
    ],
)
def test_json_is_one_document_of_the_documented_shape(
    arguments: list[str], command: str, kmsctl: Run
) -> None:
    code, out, _ = kmsctl(*arguments, "-o", "json")
    assert code == 0
    assert out.startswith('{"schema":"kmsctl/1","kind":"')
    assert out.count("\n") == 1
    printed = output.PRINTED_BY[command]
    if isinstance(printed, tuple):  # the last of several kinds, when there is but one document
        printed = printed[-1]
    document = msgspec.json.decode(out, type=printed, strict=True)
    assert json.loads(output.encoded(document)) == json.loads(out)
    described = output.schema(command)["$defs"][printed.__name__]
    assert set(described["required"]) == set(json.loads(out))


def test_only_the_chain_is_printed_when_only_the_chain_is_wanted(kmsctl: Run) -> None:
    code, _, err = kmsctl("credential", ALPHA, "--chain")
    assert code == 1
    assert "CHAIN_ABSENT" in err


def test_a_filter_reaches_the_keeper(keeper: Keeper, kmsctl: Run) -> None:
    kmsctl("credentials", "-p", "alpha", "--all")
    assert keeper.asked == [pb.ListCredentialsRequest(profile="alpha", include_destroyed=True)]


# Errors


def test_a_refusal_says_sentence_reason_and_next_command(keeper: Keeper, kmsctl: Run) -> None:
    keeper.refusal = NotFound(
        "PROFILE_UNKNOWN",
        "There is no profile 'x'.",
        next_step="kmsctl profiles",
        profile="x",
    )
    code, out, err = kmsctl("enroll", "x")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "There is no profile 'x'.",
        "reason: PROFILE_UNKNOWN",
        "profile: x",
        "next: kmsctl profiles",
    ]


def test_a_program_gets_the_refusal_as_a_document(keeper: Keeper, kmsctl: Run) -> None:
    keeper.refusal = Invalid("SPC_INVALID", "No such code.", next_step="Correct it.", spc="?")
    code, out, err = kmsctl("profiles", "--output=json")
    assert code == 1
    assert err.startswith("No such code.")
    assert json.loads(out) == {
        "schema": "kmsctl/1",
        "kind": "error",
        "reason": "SPC_INVALID",
        "message": "No such code.",
        "next_step": "Correct it.",
        "metadata": {"spc": "?"},
        "exit_code": 1,
    }


def test_the_words_of_an_sti_ca_are_shown_as_they_are_and_cannot_drive_the_terminal(
    keeper: Keeper, kmsctl: Run
) -> None:
    keeper.refusal = PeerRefused(
        "ACME_UNAUTHORIZED",
        "The STI-CA refused the revocation.",
        peer="sti-ca",
        problem='{"detail":"not yours\x1b[2J"}',
    )
    code, _, err = kmsctl("revoke", "1a2b", "--reason", "keyCompromise", "--yes")
    assert code == 1
    assert '  {"detail":"not yours\\x1b[2J"}' in err
    assert "\x1b" not in err


def test_a_time_to_wait_is_passed_on(keeper: Keeper, kmsctl: Run) -> None:
    keeper.refusal = Unavailable("HSM_AWAY", "The HSM is away.", retry_after=5.0)
    assert "try again: in 5 s" in kmsctl("status")[2]


def test_a_defect_of_the_keeper_is_told_as_such(keeper: Keeper, kmsctl: Run) -> None:
    keeper.refusal = KmsdError("X", "y")
    keeper.refusal.reason = ""
    code, _, err = kmsctl("status")
    assert code == 1
    assert "reason: INTERNAL" in err
    assert "next: journalctl -u kmsd-keeper" in err


def test_a_keeper_that_does_not_answer_in_time_is_told_from_one_that_is_not_there(
    keeper: Keeper, kmsctl: Run
) -> None:
    keeper.delay = 0.3
    code, _, err = kmsctl("status", "--timeout", "0.1")
    assert code == 1
    assert "KEEPER_TIMEOUT" in err


def test_without_a_socket_the_keeper_is_not_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--keeper", f"unix:{tmp_path}/none.sock", "status"]) == 1
    err = capsys.readouterr().err
    assert f"There is no socket {tmp_path}/none.sock" in err
    assert "reason: KEEPER_NOT_RUNNING" in err
    assert err.endswith("next: systemctl status kmsd-keeper\n")


def test_a_socket_nobody_listens_on_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(f"{tmp_path}/old.sock")
    assert main(["--keeper", f"{tmp_path}/old.sock", "status", "-o", "json"]) == 1
    told = capsys.readouterr()
    assert "exists, but nobody listens on it" in told.err
    assert json.loads(told.out)["metadata"] == {"socket": f"{tmp_path}/old.sock"}


def test_a_socket_one_may_not_use_is_a_matter_of_permission(keeper: Keeper) -> None:
    path = keeper.address.removeprefix("unix:")
    error = connection.socket_failure(path, PermissionError(13, "Permission denied"))
    assert error.reason == "KEEPER_SOCKET_FORBIDDEN"
    assert "owner" in error.message
    assert "sudo" in error.next_step


def test_nothing_at_a_tcp_address_is_unreachable(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        assert main(["--keeper", address, "status"]) == 1
    assert f"Nothing answers at {address}." in capsys.readouterr().err


@pytest.mark.parametrize("address", ["keeper", "unix:", "host:", "host:0", "host:70000", ":1"])
def test_an_address_that_is_none_is_refused(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--keeper", address, "status"]) == 1
    assert "KEEPER_ADDRESS_INVALID" in capsys.readouterr().err


def test_a_named_configuration_that_is_missing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", f"{tmp_path}/kmsd.toml", "status"]) == 1
    assert f"{tmp_path}/kmsd.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["status", "--nonsense"], ["credential"], ["-o", "xml", "status"]],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_says_where_help_is(
    arguments: list[str], kmsctl: Run
) -> None:
    code, out, err = kmsctl(*arguments)
    assert (code, out) == (2, "")
    assert "reason: USAGE" in err
    assert err.splitlines()[-1].endswith("--help")


# Enrolling


def step(credential: pb.Credential, state: str, message: str, **more: Any) -> pb.Progress:
    at = pb.Credential()
    at.CopyFrom(credential)
    at.state = state
    return pb.Progress(at=WELL.now, credential=at, message=message, **more)


def test_an_enrollment_is_told_step_by_step(keeper: Keeper, kmsctl: Run) -> None:
    keeper.steps = [
        step(ACTIVE, "keyed", "The key is in the HSM."),
        step(ACTIVE, "keyed", "The STI-CA is away.", reason="ACME_UNREACHABLE"),
        step(ACTIVE, "active", "Every signer switched.", done=True),
    ]
    code, out, err = kmsctl("enroll", "alpha")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(
        r"2026-11-21T00:00:00Z +\+\d+\.\d s  keyed +The key is in the HSM\.", lines[0]
    )
    assert lines[1].endswith("The STI-CA is away. (ACME_UNREACHABLE)")
    assert keeper.asked == [pb.EnrollRequest(profile="alpha")]


def test_a_program_gets_a_document_for_each_step(keeper: Keeper, kmsctl: Run) -> None:
    keeper.steps = [
        step(ACTIVE, "keyed", "Made."),
        step(ACTIVE, "active", "Switched.", done=True),
    ]
    code, out, _ = kmsctl("rotate", "alpha", "-o", "json")
    assert code == 0
    documents = [msgspec.json.decode(line, type=output.ProgressDocument) for line in out.split()]
    assert [(each.credential.state, each.done) for each in documents] == [
        ("keyed", False),
        ("active", True),
    ]
    assert keeper.asked == [pb.RotateRequest(profile="alpha")]


def test_an_enrollment_that_failed_ends_with_4_and_everything_known(
    keeper: Keeper, kmsctl: Run
) -> None:
    keeper.steps = [
        step(FAILED, "failed", "Rejected.", done=True, reason="CHAIN_REJECTED"),
    ]
    code, out, err = kmsctl("enroll", "gamma", "-o", "json")
    assert code == 4
    assert FAILED.trouble in err
    assert FAILED.artefact in err
    assert err.splitlines()[-1] == f"next: {FAILED.next_step}"
    last = json.loads(out.splitlines()[-1])
    assert (last["kind"], last["exit_code"]) == ("error", 4)


def test_a_keeper_that_stops_telling_is_no_success(keeper: Keeper, kmsctl: Run) -> None:
    keeper.steps = [step(ACTIVE, "keyed", "Made.")]
    code, _, err = kmsctl("enroll", "alpha")
    assert code == 1
    assert "PROGRESS_ENDED" in err
    assert err.endswith("next: kmsctl credentials --profile alpha\n")


def test_the_end_of_patience_is_not_the_end_of_an_enrollment(keeper: Keeper, kmsctl: Run) -> None:
    keeper.steps = [step(ACTIVE, "keyed", "Made.")]
    keeper.lingers = 0.5
    code, _, err = kmsctl("enroll", "alpha", "--timeout", "0.2")
    assert code == 1
    assert "the keeper goes on where it was" in err
    assert err.endswith(f"next: kmsctl credential {ALPHA}\n")


def test_ctrl_c_stops_only_the_watching(keeper: Keeper) -> None:
    keeper.steps = [step(ACTIVE, "keyed", "Made.")]
    keeper.lingers = 5.0
    with _started(keeper, "enroll", "alpha", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert b"Made." in run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=20)
    assert run.returncode == 130
    assert b"The keeper goes on to enroll alpha." in err
    assert err.endswith(b"next: kmsctl credentials --profile alpha\n")


def test_at_a_terminal_a_spinner_says_what_is_waited_for(keeper: Keeper) -> None:
    keeper.steps = [
        step(ACTIVE, "ordered", "Waiting for the STI-CA."),
        step(ACTIVE, "active", "Every signer switched.", done=True),
    ]
    ours, theirs = pty.openpty()
    with _started(keeper, "enroll", "alpha", stdout=theirs, environment={"TERM": "xterm"}) as run:
        os.close(theirs)
        shown = _until(ours, "")
        assert run.wait(timeout=20) == 0
    os.close(ours)
    assert "\x1b[?25l" in shown  # the cursor is hidden while it turns
    assert "\x1b[?25h" in shown
    assert shown.count("Every signer switched.") >= 1


# Asking before it is too late


@pytest.mark.parametrize("arguments", [["destroy"], ["revoke", "--reason", "superseded"]])
def test_without_a_terminal_nothing_is_destroyed_unless_yes_is_said(
    arguments: list[str], keeper: Keeper, kmsctl: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = kmsctl(*arguments, "1a2b")
    assert code == 2
    assert "CONFIRMATION_MISSING" in err
    assert "--yes" in err
    assert keeper.asked == [pb.GetCredentialRequest(credential="1a2b")]


def test_trust_is_not_forgotten_without_a_confirmation(keeper: Keeper, kmsctl: Run) -> None:
    code, _, err = kmsctl("trust", "forget", "sti-pa")
    assert (code, "CONFIRMATION_MISSING" in err) == (2, True)
    assert keeper.asked == []


@pytest.mark.parametrize("flag", ["--now", "--even-if-active"])
def test_revoke_speaks_rfc_5280(flag: str, keeper: Keeper, kmsctl: Run) -> None:
    kmsctl("revoke", "1a2b", "--reason", "keyCompromise", flag, "--yes")
    kmsctl("revoke", "1a2b", "--reason", "superseded", "--by-certificate-key", "--yes")
    assert keeper.asked == [
        pb.RevokeRequest(credential="1a2b", reason=1, even_if_active=True),
        pb.RevokeRequest(credential="1a2b", reason=4, by_certificate_key=True),
    ]


def test_the_way_of_a_compromised_key_is_told_step_by_step_and_ends_with_its_credential(
    keeper: Keeper, kmsctl: Run
) -> None:
    keeper.steps = [
        step(ACTIVE, "active", "Condemned."),
        step(COMING, "active", "Every signer switched."),
        step(REVOKED, "retired", "Revoked."),
        step(REVOKED, "destroyed", "Key destroyed.", done=True),
    ]
    words = ("revoke", "1a2b", "--reason", "keyCompromise", "--yes")
    code, out, _ = kmsctl(*words, "-o", "json")
    documents = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [each["kind"] for each in documents] == ["progress"] * 4 + ["credential"]
    assert documents[-1]["credential"]["revocation"]["reason"] == "superseded"
    code, out, _ = kmsctl(*words)
    assert code == 0
    assert out.index("Condemned.") < out.index("Key destroyed.") < out.index("superseded")


def test_a_compromised_key_whose_successor_fails_ends_with_4(keeper: Keeper, kmsctl: Run) -> None:
    keeper.steps = [
        step(ACTIVE, "active", "Condemned."),
        step(FAILED, "failed", "Rejected.", done=True, reason="CHAIN_REJECTED"),
    ]
    code, _, err = kmsctl("revoke", "1a2b", "--reason", "keyCompromise", "--yes")
    assert code == 4
    assert "reason: CHAIN_REJECTED" in err


def test_a_keeper_that_stops_telling_of_a_revocation_is_no_success(
    keeper: Keeper, kmsctl: Run
) -> None:
    keeper.steps = [step(ACTIVE, "active", "Condemned.")]
    code, _, err = kmsctl("revoke", "1a2b", "--reason", "keyCompromise", "--yes")
    assert (code, "PROGRESS_ENDED" in err) == (1, True)
    assert err.endswith("next: kmsctl credential 1a2b\n")


@pytest.mark.parametrize(("typed", "code"), [(ALPHA, 0), (ALPHA[:8], 0), ("yes", 2), ("", 2)])
def test_at_a_terminal_only_the_id_itself_confirms(typed: str, code: int, keeper: Keeper) -> None:
    ours, theirs = pty.openpty()
    with _started(keeper, "destroy", "1a2b", stdin=theirs, stdout=theirs, stderr=theirs) as run:
        os.close(theirs)
        shown = _until(ours, "destroy it:")
        assert f"{ALPHA} of alpha (SPC 1234) is active" in shown
        os.write(ours, f"{typed}\n".encode())
        shown = _until(ours, "")
        assert run.wait(timeout=20) == code
    os.close(ours)
    destroyed = [request for request in keeper.asked if isinstance(request, pb.DestroyRequest)]
    assert destroyed == ([pb.DestroyRequest(credential=ALPHA)] if code == 0 else [])


def test_ctrl_c_at_the_question_changes_nothing(keeper: Keeper) -> None:
    ours, theirs = pty.openpty()
    with _started(keeper, "destroy", "1a2b", stdin=theirs, stdout=theirs, stderr=theirs) as run:
        os.close(theirs)
        _until(ours, "destroy it:")
        while run.poll() is None:  # a signal just before the read begins is not seen by it
            run.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=3)
        assert run.returncode == 130
        assert "Stopped before anything was changed." in _until(ours, "")
    os.close(ours)
    assert keeper.asked == [pb.GetCredentialRequest(credential="1a2b")]


# A terminal and a pipe


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colour_unless_no_color_is_set(
    no_color: str, coloured: bool, keeper: Keeper
) -> None:
    ours, theirs = pty.openpty()
    environment = {"NO_COLOR": no_color, "TERM": "xterm-256color"}
    with _started(keeper, "status", stdout=theirs, environment=environment) as run:
        os.close(theirs)
        shown = _until(ours, "")
        assert run.wait(timeout=20) == 0
    os.close(ours)
    assert ("\x1b[" in shown) is coloured


def test_a_reader_that_has_seen_enough_is_no_error(keeper: Keeper) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with _started(keeper, "credentials", stdout=writing, stderr=subprocess.PIPE) as run:
        os.close(writing)
        _, err = run.communicate(timeout=20)
    assert err == b""


# Completion


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("credential ", ["9f8e7d6c5b4a3928", "1a2b3c4d5e6f7a8b"]),
        ("credential 9f", ["9f8e7d6c5b4a3928"]),
        ("enroll b", ["beta-telecom-west"]),
        ("explain a", ["alpha"]),
        ("explain 9", ["9f8e7d6c5b4a3928"]),
        ("credentials --profile a", ["alpha"]),
    ],
)
def test_the_shell_completes_what_the_keeper_knows(
    words: str, offered: list[str], keeper: Keeper
) -> None:
    assert _completed(f"kmsctl --keeper {keeper.address} {words}") == offered


def test_completion_is_silent_when_there_is_no_keeper(tmp_path: Path) -> None:
    assert _completed(f"kmsctl --keeper unix:{tmp_path}/none enroll a") == []


# The interface as documented


@pytest.mark.parametrize("arguments", [["status", "-o", "json"], ["-o", "json", "status"]])
def test_global_options_may_stand_anywhere(arguments: list[str]) -> None:
    assert hoisted(arguments) == ["-o", "json", "status"]


def test_nothing_behind_two_dashes_is_taken_for_an_option() -> None:
    assert hoisted(["verify", "--timeout=1", "--", "-o", "json"]) == [
        "--timeout=1",
        "verify",
        "--",
        "-o",
        "json",
    ]


def test_the_schema_of_every_document_can_be_had(kmsctl: Run) -> None:
    code, out, _ = kmsctl("schema")
    assert code == 0
    kinds = {
        each["properties"]["kind"]["enum"][0]
        for each in json.loads(out)["$defs"].values()
        if "kind" in each.get("properties", ())
    }
    assert kinds == {
        *("status", "profiles", "credentials", "credential", "progress"),
        *("explanation", "plan", "accounts", "forgotten"),
        *("identity", "verification", "error"),
    }


def test_there_is_no_schema_of_an_unknown_command(kmsctl: Run) -> None:
    assert kmsctl("schema", "nonsense")[0] == 2


def test_the_version_is_told(kmsctl: Run) -> None:
    assert kmsctl("--version") == (0, f"kmsctl {kmsd.__version__}\n", "")


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Begin with:" in capsys.readouterr().out


def test_every_commands_help_has_an_example(kmsctl: Run) -> None:
    for command in _commands():
        code, out, _ = kmsctl(*command.split(), "--help")
        assert code == 0
        assert f"\n    kmsctl {command}" in out, command


def test_the_man_page_lists_every_command_and_option(kmsctl: Run) -> None:
    page = MAN.read_text()
    listed = re.findall(r"^\.It Ic (\S+(?: [a-z]\S*)?)(?=$| )", page, re.MULTILINE)
    assert sorted(listed) == _commands()
    helps = [kmsctl(*command.split(), "--help")[1] for command in ("", *_commands())]
    for option in set(re.findall(r"--([a-z0-9-]+)", "".join(helps))) - {"help"}:
        assert f"Fl -{option}" in page or option.startswith(("install-", "show-")), option


def test_the_man_page_lists_every_exit_code() -> None:
    section = MAN.read_text().partition(".Sh EXIT STATUS")[2].partition("\n.Sh ")[0]
    listed = re.findall(r"^\.It (\d+)\n(.+)$", section, re.MULTILINE)
    assert [(int(code), words.rstrip(".")) for code, words in listed] == [
        (code.value, meaning) for code, meaning in MEANINGS.items()
    ]


def _commands() -> list[str]:
    """Every command as it is typed, those of groups behind their group's name."""
    app = application()
    alone = [str(command.name) for command in app.registered_commands]
    grouped = [
        f"{group.name} {command.name}"
        for group in app.registered_groups
        if group.typer_instance is not None
        for command in group.typer_instance.registered_commands
    ]
    return sorted(alone + grouped)


@contextlib.contextmanager
def _started(
    keeper: Keeper,
    *arguments: str,
    environment: dict[str, str] | None = None,
    **streams: Any,
) -> Iterator[subprocess.Popen[bytes]]:
    variables = os.environ | {"COLUMNS": "100"} | (environment or {})
    with subprocess.Popen(
        [KMSCTL, "--keeper", keeper.address, *arguments],
        env=variables,
        start_new_session=True,
        **streams,
    ) as run:
        try:
            yield run
        finally:
            run.kill()  # a test that failed does not wait for it


def _until(terminal: int, words: str) -> str:
    """What the terminal shows until `words` appear; with "" until it is closed."""
    shown = ""
    while not words or words not in shown:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other side was closed: end of file on a pty
            break
        shown += piece.decode()
    return shown


def _completed(line: str) -> list[str]:
    variables = {"_KMSCTL_COMPLETE": "complete_bash", "COMP_WORDS": line}
    variables["COMP_CWORD"] = str(len(line.split()) - (not line.endswith(" ")))
    told = subprocess.run(
        [KMSCTL], env=os.environ | variables, capture_output=True, check=True, timeout=20
    )
    assert told.stderr == b""
    return told.stdout.decode().split()
