"""What the shell offers after Tab: names of profiles and ids of credentials, from the keeper.

Quick, and silent when the keeper does not answer: a person is typing.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import typer
from kmsapi.v1 import admin_pb2 as pb
from kmsapi.v1.admin_pb2_grpc import AdminStub

from kmsd.ctl import connection
from kmsd.ctl.invocation import Invocation

HURRY = 1.0
"""Seconds that a person is kept waiting after Tab, at most."""


def profiles(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names that begin as typed, each with its service provider code."""

    def ask(admin: AdminStub) -> list[tuple[str, str]]:
        answer = admin.ListProfiles(pb.ListProfilesRequest(), timeout=HURRY)
        return [(each.name, f"SPC {each.spc}") for each in answer.profiles]

    return _offered(context, incomplete, ask)


def credentials(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids that begin as typed, each with its profile and state."""

    def ask(admin: AdminStub) -> list[tuple[str, str]]:
        answer = admin.ListCredentials(pb.ListCredentialsRequest(), timeout=HURRY)
        return [(each.id, f"{each.profile}, {each.state}") for each in answer.credentials]

    return _offered(context, incomplete, ask)


def authorities(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names of STI-PAs that begin as typed."""

    def ask(admin: AdminStub) -> list[tuple[str, str]]:
        answer = admin.GetStatus(pb.GetStatusRequest(), timeout=HURRY)
        return [(each.authority, f"list {each.sequence}") for each in answer.trust]

    return _offered(context, incomplete, ask)


def profiles_and_credentials(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Names and ids that begin as typed."""
    return profiles(context, incomplete) + credentials(context, incomplete)


def _offered(
    context: typer.Context,
    incomplete: str,
    ask: Callable[[AdminStub], list[tuple[str, str]]],
) -> list[tuple[str, str]]:
    given = context.find_root().params
    config = given.get("config")
    run = Invocation(config=Path(config) if config else None, keeper=given.get("keeper") or "")
    # Whatever goes wrong must not be written into the command line that is being typed.
    with suppress(Exception), connection.admin(run.address()) as admin:
        return [each for each in ask(admin) if each[0].startswith(incomplete)]
    return []
