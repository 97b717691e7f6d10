"""A network in an asyncio program.

    async with slirp.aio.Network("10.0.2.0/24") as net:
        net.attach(port)
        net.forward("8080:80")
        async for event in net.events("lease", "flow-opened"):
            print(event.kind, event.data)

It is a slirp.Network whose turns asyncio's loop makes: inside `async with` its descriptor is
watched, and everything that it has to do is done from there. Its methods are called from the
loop's thread, like everything in asyncio; none of them waits, so none of them is a coroutine, but
`serve`, which waits for the end. A device that goes away ends it: `serve` raises DeviceGone.

`events` gives an asynchronous iterator. Events that nobody has taken yet wait in it, EVENTS_MAX of
them; then the oldest is let go and counted (`lost`), so that a slow reader costs no more than that.

Does not do: other event loops' ways (a descriptor and `poll(0)` are all that they need).
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from nic.port import DeviceGone
from slirp.events import KINDS, Event
from slirp.network import Network as _Network

EVENTS_MAX: Final = 1024  # that wait for one reader


class EventStream:
    """Events as they come, for `async for`. It ends with its network, or by `close`."""

    def __init__(self, network: _Network, kinds: tuple[str, ...], room: int) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        self.lost = 0  # events that were not taken in time
        self._kinds = frozenset(kinds or KINDS)
        self._waiting: deque[Event] = deque(maxlen=room)
        self._news = asyncio.Event()
        self._closed = False
        self._unsubscribe = network.subscribe(self._take)

    def _take(self, event: Event) -> None:
        if event.kind in self._kinds:
            self.lost += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(event)
            self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """No more are taken; those that wait can still be read."""
        self._closed = True
        self._unsubscribe()
        self._news.set()


class Network(_Network):
    """A slirp.Network for `async with`; its arguments are that one's."""

    _loop_of_asyncio: asyncio.AbstractEventLoop | None = None
    _end: asyncio.Future[None]
    _streams: list[EventStream]

    async def __aenter__(self) -> Self:
        self._loop_of_asyncio = asyncio.get_running_loop()
        self._end = self._loop_of_asyncio.create_future()
        self._streams = []
        self._loop_of_asyncio.add_reader(self.fileno(), self._turn)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop_of_asyncio is not None
        self._loop_of_asyncio.remove_reader(self.fileno())
        for stream in self._streams:
            stream.close()
        if not self._end.done():
            self._end.cancel()
        self.close()

    def _turn(self) -> None:
        try:
            self.poll(0.0)
        except DeviceGone as gone:
            assert self._loop_of_asyncio is not None
            self._loop_of_asyncio.remove_reader(self.fileno())
            if not self._end.done():
                self._end.set_exception(gone)

    async def serve(self) -> None:
        """Wait until `stop()`. Raises DeviceGone where there is nothing left to serve."""
        await asyncio.shield(self._end)

    def stop(self) -> None:
        """Have `serve` return; other threads and signal handlers may call it."""
        loop = self._loop_of_asyncio
        if loop is None:
            super().stop()
        else:
            loop.call_soon_threadsafe(self._stopped)

    def _stopped(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    def events(self, *kinds: str, room: int = EVENTS_MAX) -> EventStream:
        """Each event from now on, of these kinds or of all (slirp.events.KINDS)."""
        stream = EventStream(self, kinds, room)
        self._streams.append(stream)
        return stream
