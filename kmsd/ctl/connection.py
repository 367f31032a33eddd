"""The line to the keeper: a gRPC channel to kmsapi.v1.Admin, and its failures in plain words.

Whatever goes wrong leaves here as a `KmsdError`: a refusal with the keeper's own reason and
sentence (google.rpc.Status with ErrorInfo in the trailing metadata), an unreachable keeper
with what is known of its socket. Not here: retries. An operator decides that.
"""

import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from kmsapi.v1.admin_pb2_grpc import AdminStub

from kmsd.errors import (
    DOMAIN,
    Denied,
    Exhausted,
    Invalid,
    KmsdError,
    NotFound,
    Precondition,
    Refused,
    Unavailable,
)

START = "systemctl status kmsd-keeper"
"""What to look at when the keeper does not answer."""

_DETAILS = "grpc-status-details-bin"
_REFUSALS: dict[str, type[Refused]] = {
    kind.code: kind for kind in (Invalid, NotFound, Denied, Exhausted, Precondition)
}


@contextmanager
def admin(address: str) -> Iterator[AdminStub]:
    """Lends a stub of Admin at `address`: `unix:PATH`, an absolute path, or host:port.

    What gRPC raises inside the block leaves it as KmsdError.
    """
    target = target_of(address)
    options = [
        ("grpc.enable_http_proxy", 0),  # http_proxy is meant for the web, not for the keeper
        ("grpc.max_receive_message_length", 64 << 20),  # ten thousand credentials and more
    ]
    channel = grpc.insecure_channel(target, options=options)
    try:
        yield AdminStub(channel)
    except grpc.RpcError as error:
        raise translated(error, address) from error
    finally:
        channel.close()


def target_of(address: str) -> str:
    """The gRPC target of an address as people write it. Raises Invalid."""
    if address.startswith("/"):
        return f"unix:{address}"
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal() and 0 < int(port) < 65536:
        return address
    raise Invalid(
        "KEEPER_ADDRESS_INVALID",
        f"{address!r} is no address of a keeper.",
        next_step="Give unix:/run/kmsd/keeper.sock, or host:port.",
    )


def translated(error: grpc.RpcError, address: str) -> KmsdError:
    """A failed call as the error it stands for."""
    if not isinstance(error, grpc.Call):  # a channel that was closed under the call
        return KmsdError("CALL_FAILED", f"The call to the keeper failed: {error}")
    code: grpc.StatusCode = error.code()
    refusal = _refusal(error)
    if refusal is not None:
        return refusal
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return unreachable(address)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unavailable(
                "KEEPER_TIMEOUT",
                f"The keeper at {address} took the call and did not answer in time.",
                next_step=f"Give it longer with --timeout, or look at it: {START}",
            )
        case grpc.StatusCode.UNIMPLEMENTED:
            return Precondition(
                "KEEPER_VERSION",
                f"The keeper at {address} does not know this call: it is another version.",
                next_step="Compare kmsctl --version with kmsctl status.",
            )
    details = (error.details() or "no details").rstrip(".")
    return KmsdError(
        code.name, f"The keeper failed: {details}.", next_step="journalctl -u kmsd-keeper"
    )


def unreachable(address: str) -> Unavailable:
    """Why there is nobody at `address`: what connecting to it by hand says."""
    target = target_of(address)
    if not target.startswith("unix:"):
        return Unavailable(
            "KEEPER_UNREACHABLE", f"Nothing answers at {address}.", next_step=START, keeper=address
        )
    path = "/" + target.removeprefix("unix:").lstrip("/")
    if not target.startswith("unix:/"):
        path = os.path.abspath(target.removeprefix("unix:"))
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except OSError as failure:
        return socket_failure(path, failure)
    return Unavailable(
        "KEEPER_UNREACHABLE",
        f"Something listens on {path}, but it does not speak as a keeper does.",
        next_step=START,
        socket=path,
    )


def socket_failure(path: str, failure: OSError) -> Unavailable:
    """What a failed connect(2) to the keeper's socket means to an operator."""
    match failure:
        case FileNotFoundError():
            reason, next_step = "KEEPER_NOT_RUNNING", START
            message = f"There is no socket {path}: the keeper is not running, or listens elsewhere."
        case PermissionError():
            reason = "KEEPER_SOCKET_FORBIDDEN"
            message = f"You may not use the socket {path}{_owner(path)}."
            next_step = "Repeat it with sudo, or become a member of the socket's group."
        case ConnectionRefusedError():
            reason, next_step = "KEEPER_NOT_RUNNING", START
            message = (
                f"The socket {path} exists, but nobody listens on it: the keeper is not running."
            )
        case _:
            reason, next_step = "KEEPER_UNREACHABLE", START
            what = (failure.strerror or str(failure) or type(failure).__name__).lower()
            message = f"The socket {path} cannot be used: {what}."
    return Unavailable(reason, message, next_step=next_step, socket=path)


def _owner(path: str) -> str:
    try:
        about = os.stat(path)
        user = pwd.getpwuid(about.st_uid).pw_name
        group = grp.getgrgid(about.st_gid).gr_name
    except (OSError, KeyError):
        return ""
    return f" ({stat.filemode(about.st_mode)}, owner {user}, group {group})"


def _refusal(error: grpc.Call) -> KmsdError | None:
    """The refusal in the trailing metadata, when the keeper itself spoke; else None."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes):
            with suppress(DecodeError):
                status = status_pb2.Status.FromString(value)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    if not info.reason or info.domain != DOMAIN:
        return None
    facts = dict(info.metadata)
    next_step = facts.pop("next_step", "")
    message = (status.message or error.details() or "").removesuffix(next_step).rstrip()
    for taken in ("reason", "message", "retry_after"):
        facts.pop(taken, None)
    code: grpc.StatusCode = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        after = retry.retry_delay.ToTimedelta().total_seconds()
        return Unavailable(info.reason, message, retry_after=after, next_step=next_step, **facts)
    kind = _REFUSALS.get(code.name, KmsdError)
    return kind(info.reason, message, next_step=next_step, **facts)
