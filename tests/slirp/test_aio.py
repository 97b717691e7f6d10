"""A network in an asyncio program: its turns, its events, its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import slirp.aio
from nic.port import DeviceGone, Frame
from tests.kit.guest import GATEWAY, GUEST, arp
from tests.kit.port import MemoryPort
from tests.kit.ports import free_port
from tests.slirp.host.conftest import open_fds


def run(coroutine: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(20):
            return await coroutine

    return asyncio.run(limited())


def test_it_is_a_network() -> None:
    async def program() -> None:
        async with slirp.aio.Network("10.0.9.0/24", mtu=1400) as net:
            assert isinstance(net, slirp.Network)
            assert net.gateway == "10.0.9.2"
            (forward,) = net.forward(f"{free_port()}:80")
            reader, writer = await asyncio.open_connection(*forward.host)
            writer.close()
            await writer.wait_closed()
            assert reader is not None

    run(program())  # the first one claims ports for these tests, and keeps them
    before = open_fds()
    run(program())
    assert open_fds() == before


def test_events_of_a_guest_come_by_themselves() -> None:
    async def program() -> None:
        async with slirp.aio.Network(resolvers=()) as net:
            events = net.events()
            port = MemoryPort()
            net.attach(port, "here")
            port.give(arp(1, GUEST, GATEWAY))
            assert (await anext(events)).kind == "port-attached"
            seen = await anext(events)
            assert (seen.kind, seen.data["address"]) == ("guest-seen", GUEST)
            assert port.take()

    run(program())


def test_some_kinds_only_and_the_oldest_are_lost() -> None:
    async def program() -> None:
        async with slirp.aio.Network() as net:
            events = net.events("forward-removed", room=2)
            for _ in range(3):
                (forward,) = net.forward(f"{free_port()}:80")
                net.remove_forward(forward.id)
            assert events.lost == 1
            assert [(await anext(events)).data["id"] for _ in range(2)] == [2, 3]
            with pytest.raises(ValueError, match="none of"):
                net.events("nonsense")

    run(program())


def test_events_end_with_the_network() -> None:
    async def program() -> list[str]:
        async with slirp.aio.Network() as net:
            events = net.events()
            net.forward(f"{free_port()}:80")
            reader = asyncio.create_task(collect(events))
            await asyncio.sleep(0)
        return await reader

    async def collect(events: slirp.aio.EventStream) -> list[str]:
        return [event.kind async for event in events]

    assert run(program()) == ["forward-added"]


def test_serve_waits_for_stop_from_any_thread() -> None:
    async def program() -> None:
        async with slirp.aio.Network() as net:
            waiting = asyncio.create_task(net.serve())
            await asyncio.sleep(0)
            assert not waiting.done()
            await asyncio.to_thread(net.stop)
            await waiting
            await net.serve()

    run(program())


class Going(MemoryPort):
    """A device that goes away when something is asked of it."""

    def frames(self) -> Iterator[Frame]:
        raise DeviceGone(19, "No such device")


def test_device_that_goes_away_ends_it() -> None:
    async def program() -> None:
        async with slirp.aio.Network() as net:
            port = Going()
            net.attach(port)
            port.give(arp(1, GUEST, GATEWAY))
            await net.serve()

    with pytest.raises(DeviceGone):
        run(program())


def test_without_async_it_is_a_network_still() -> None:
    with slirp.aio.Network() as net:
        net.stop()
        net.run()
