"""Chains in object storage (S3, GCS, Azure, or memory for tests), by obstore.

Credentials of the object storage come from where its own tools take them (environment, instance
role), never from kmsd.toml.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Self

import obstore
from obstore import exceptions
from obstore.store import ObjectStore, from_url

from kmsd.errors import KmsdError, Misconfigured, PeerRefused, Unavailable

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory")

CLIENT_OPTIONS = (
    "allow_http",
    "connect_timeout",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_url",
    "proxy_ca_certificate",
    "proxy_excludes",
    "randomize_addresses",
    "read_timeout",
    "timeout",
)
"""Options of obstore's HTTP client; among a store's own ones they make it panic."""

SECRETS = ("secret", "token", "password", "_key")
"""What the name of an option with a secret in it has."""

FOREIGN = (exceptions.BaseError, FileNotFoundError, NotImplementedError)
"""What obstore raises; "not found" and "not supported" come as Python's own errors."""


class Bucket:
    """Object storage with a chain per object. media_type, cache_control: what it serves with."""

    def __init__(self, store: ObjectStore, media_type: str, cache_control: str) -> None:
        self._store = store
        self._media_type = media_type
        self._cache_control = cache_control

    @classmethod
    def at(cls, url: str, options: Mapping[str, str], media_type: str, cache_control: str) -> Self:
        """The bucket and prefix that `url` names.

        Raises Misconfigured (REPOSITORY_URL, REPOSITORY_OPTION).
        """
        if url.partition("://")[0] not in SCHEMES:
            raise Misconfigured(
                "REPOSITORY_URL",
                f"repository.url {url!r} is neither file:///... nor object storage.",
                next_step="Use file:///directory, s3://bucket/, gs://bucket/ or az://container/.",
            )
        for name in options:
            if _is_secret(name.lower()):
                raise Misconfigured(
                    "REPOSITORY_OPTION",
                    f"repository.options.{name} is a secret, and secrets are not configuration.",
                    next_step="Give it in the environment, as the object storage's tools take it.",
                )
        client: Any = {name: each for name, each in options.items() if name in CLIENT_OPTIONS}
        config: Any = {name: each for name, each in options.items() if name not in client}
        retry: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
        try:
            # Each store types its own options; here they are an operator's text.
            store = from_url(  # type: ignore[call-overload]
                url,
                config=config or None,
                client_options={"timeout": "20s", **client},
                retry_config=retry,
            )
        except exceptions.UnknownConfigurationKeyError as error:
            raise Misconfigured(
                "REPOSITORY_OPTION", f"repository.options: {_said(error)}"
            ) from error
        except (exceptions.BaseError, ValueError, TypeError) as error:
            raise Misconfigured("REPOSITORY_URL", f"repository.url: {_said(error)}") from error
        return cls(store, media_type, cache_control)

    async def create(self, name: str, chain: bytes) -> bool:
        """Puts a new object there; False when the name exists (a conditional put).

        Raises Unavailable (REPOSITORY_UNAVAILABLE), PeerRefused (REPOSITORY_REFUSED).
        """
        try:
            await obstore.put_async(
                self._store,
                name,
                chain,
                mode="create",
                attributes={
                    "Content-Type": self._media_type,
                    "Cache-Control": self._cache_control,
                },
            )
        except exceptions.AlreadyExistsError:
            return False
        except FOREIGN as error:
            raise _translated(error) from error
        return True

    async def read(self, name: str) -> bytes:
        """The object's octets. Raises as `create`."""
        try:
            found = await obstore.get_async(self._store, name)
            return bytes(await found.bytes_async())
        except FOREIGN as error:
            raise _translated(error) from error

    async def delete(self, name: str) -> None:
        """Deletes the object, if it is there. Raises as `create`."""
        try:
            await obstore.delete_async(self._store, name)
        except FileNotFoundError:
            return
        except FOREIGN as error:
            raise _translated(error) from error


def _is_secret(option: str) -> bool:
    named_by_path = option.endswith(("_file", "access_key_id"))
    return not named_by_path and any(word in option for word in SECRETS)


def _translated(error: Exception) -> KmsdError:
    match error:
        case (
            exceptions.PermissionDeniedError()
            | exceptions.UnauthenticatedError()
            | FileNotFoundError()
            | NotImplementedError()
        ):
            return PeerRefused(
                "REPOSITORY_REFUSED",
                "The object storage refused to take or give a chain.",
                peer="sti-cr",
                problem=_said(error),
                next_step="Check bucket, credentials and rights: kmsd reads and creates objects.",
            )
        case _:
            return Unavailable(
                "REPOSITORY_UNAVAILABLE",
                f"The object storage did not take or give a chain: {_said(error)}",
            )


def _said(error: Exception) -> str:
    """The first paragraph; what follows is obstore's own source, for its developers."""
    return str(error).partition("\n\n")[0][:1000]
