"""How everything is: keeper, HSM, signers, trust material, profiles, alarms; as kmsapi.v1 messages.

Made from what is stored and seen each time somebody asks. Nothing is changed here.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from kmsapi.v1 import admin_pb2 as pb

from kmsd import __version__
from kmsd.alarms import alarms
from kmsd.anchors import Anchors
from kmsd.errors import KmsdError
from kmsd.hsmthread import HsmThread
from kmsd.model import Credential
from kmsd.presence import seen
from kmsd.revoking import Revoking
from kmsd.settings import Configuration
from kmsd.standby import Standby
from kmsd.store import Store
from kmsd.switch import Switch
from kmsd.views import profile_message, revocation_alarm, signer_message

HSM_PATIENCE = 5.0
"""Seconds that a status waits for the HSM: a call that hangs cannot be cancelled."""


class Overview:
    """Of one keeper."""

    def __init__(
        self,
        configuration: Configuration,
        store: Store,
        hsm: HsmThread,
        anchors: Anchors,
        revoking: Revoking,
        switch: Switch,
        standby: Standby,
        clock: Callable[[], int],
    ) -> None:
        self._configuration = configuration
        self._store = store
        self._hsm = hsm
        self._anchors = anchors
        self._revoking = revoking
        self._switch = switch
        self._standby = standby
        self._clock = clock
        self._started = clock()

    async def profiles(self) -> list[pb.Profile]:
        """The configured ones, in the order of their names."""
        credentials = await asyncio.to_thread(self._store.credentials)
        of: defaultdict[str, list[Credential]] = defaultdict(list)
        for one in credentials:
            of[one.profile].append(one)
        return [
            profile_message(name, profile, of[name])
            for name, profile in sorted(self._configuration.profiles.items())
        ]

    async def status(self) -> pb.Status:
        """Keeper, HSM, signers, trust material, profiles, and the alarms of all of it."""
        now = self._clock()
        signers = seen(Path(self._configuration.run))
        status = pb.Status(
            version=__version__,
            now=now,
            started_at=self._started,
            hsm=await self._hsm_status(),
            epoch=self._switch.epoch,
            signers=map(signer_message, signers),
            trust=[await self.trust(name) for name in self._configuration.authorities],
            profiles=await self.profiles(),
        )
        trouble = self._standby.trouble
        status.standing_by = trouble.message if trouble else ""
        status.alarms.extend(revocation_alarm(*each) for each in self._revoking.failures)
        agenda = self._store.agenda
        status.alarms.extend(
            alarms(
                status,
                signers,
                None if self._standby.waits else trouble,
                healths=await asyncio.to_thread(agenda.healths),
                distrusted=await asyncio.to_thread(agenda.distrusted),
            )
        )
        return status

    async def trust(self, name: str) -> pb.TrustStatus:
        """The material of one authority, as last accepted."""
        message = pb.TrustStatus(authority=name)
        if (trusted := await asyncio.to_thread(self._store.trust_list, name)) is not None:
            message.sequence = trusted.sequence
            message.roots = len(trusted.roots)
            message.list_fetched_at = trusted.fetched_at
            message.list_expires_at = trusted.expires
        if (crl := await asyncio.to_thread(self._store.revocation_list, name)) is not None:
            message.crl_number = crl.number
            message.crl_fetched_at = crl.fetched_at
            message.crl_next_update = crl.next_update
        if (trouble := self._anchors.trouble(name)) is not None:
            message.trouble = str(trouble)
        return message

    async def _hsm_status(self) -> pb.HsmStatus:
        message = pb.HsmStatus(token=self._configuration.hsm.token)
        try:
            async with asyncio.timeout(HSM_PATIENCE):
                info, inventory = await self._hsm(lambda hsm: (hsm.info, hsm.inventory()))
        except KmsdError as error:
            message.trouble = str(error)
            return message
        except TimeoutError:
            message.trouble = (
                f"The HSM has not answered for {HSM_PATIENCE:.0f} s. If that lasts, only a new "
                "process helps: systemctl restart kmsd-keeper"
            )
            return message
        message.usable = True
        message.serial = info.serial
        message.module = info.module
        credentials = await asyncio.to_thread(self._store.credentials)
        accounts = await asyncio.to_thread(self._store.accounts)
        known = {one.key_id for one in credentials} | {one.key_id for one in accounts}
        known |= {one.coming_key_id for one in accounts if one.coming_key_id}
        known |= {one.former.key_id for one in accounts if one.former}
        known |= {one.key_id for one in await asyncio.to_thread(self._store.agenda.spares)}
        message.keys = len(inventory.ours & known)
        message.foreign_objects = inventory.foreign + len(inventory.ours - known)
        return message
