"""A thing that many may use at the same time, or one alone."""

import asyncio

from kmsd.shares import Shares


async def test_many_share_and_who_is_alone_waits_for_them_and_keeps_others_out() -> None:
    shares, told = Shares(), list[str]()
    leave = asyncio.Event()

    async def share(name: str) -> None:
        async with shares.shared():
            told.append(name)
            await leave.wait()
        told.append(f"{name} left")

    async def alone() -> None:
        async with shares.alone():
            told.append("alone")
            await asyncio.sleep(0.01)
            told.append("done")

    async with asyncio.TaskGroup() as tasks:
        for name in ("a", "b"):
            tasks.create_task(share(name))
        await asyncio.sleep(0)
        tasks.create_task(alone())
        await asyncio.sleep(0.01)
        tasks.create_task(share("c"))  # not before who waited longer
        await asyncio.sleep(0.01)
        assert told == ["a", "b"]
        leave.set()
    assert told[2:4] == ["a left", "b left"]
    assert told[4:] == ["alone", "done", "c", "c left"]


async def test_who_is_cancelled_leaves_no_share_behind() -> None:
    shares = Shares()

    async def share() -> None:
        async with shares.shared():
            await asyncio.Event().wait()

    task = asyncio.create_task(share())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(1), shares.alone():
        pass
