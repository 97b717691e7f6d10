"""What happens on a network, as it happens: machines, leases, flows, forwards, captures.

    network.subscribe(print)        # Event(number=1, at=…, kind="flow-opened", data={…})

An event is told once, from the network's own thread, in the turn in which it happened, to whoever
listens at that moment. Nobody is waited for and nothing is kept: a listener that wants to be slow
keeps a queue of its own, with a bound (slirp.control.lines, slirp.aio). Where nobody listens no
event is made, and the relays do not even ask: the network hangs `Events` into them with the first
listener and takes it out with the last.

Does not do: history, delivery to other processes, anything per packet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

# kind: what its data are, for docs/control.md and the schema
KINDS: Final[Mapping[str, str]] = {
    "port-attached": "a port was put on the network: port",
    "port-detached": "it was taken off, or its device is gone: port",
    "guest-seen": "an address on the virtual wire is known now: address, mac, port",
    "lease": "a guest was given an address: address, mac, hostname",
    "lease-ended": "a guest gave its address back: address, mac, hostname",
    "flow-opened": "a TCP connection or UDP mapping: as in flows",
    "flow-closed": "it is over: as in flows, as it was last",
    "forward-added": "a host's address leads to a guest: as in forwards.list",
    "forward-removed": "it does no longer: as in forwards.list",
    "capture-started": "packets are written to a file: as in capture.status",
    "capture-stopped": "they are no longer: as in capture.status",
    "stopping": "the network was told to end",
}


class Event(NamedTuple):
    """One thing that happened."""

    number: int  # counts what was told since the network began
    at: float  # seconds on the network's clock
    kind: str  # one of KINDS
    data: Mapping[str, Any]  # as JSON has them


Listener: TypeAlias = Callable[[Event], None]


class Events:
    """Who listens."""

    def __init__(self, clock: Callable[[], float], changed: Callable[[bool], None]) -> None:
        """`changed(True)` when the first listener has come, `changed(False)` without any."""
        self._clock = clock
        self._changed = changed
        self._listeners: list[Listener] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` from now on; what is returned ends it, and may be called twice."""
        entry: Listener = lambda event: listener(event)  # noqa: E731 - two of one are two
        self._listeners.append(entry)
        if len(self._listeners) == 1:
            self._changed(True)

        def end() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)
                if not self._listeners:
                    self._changed(False)

        return end

    def tell(self, kind: str, data: Mapping[str, Any]) -> None:
        """It has happened."""
        self._count += 1
        event = Event(self._count, self._clock(), kind, data)
        for listener in tuple(self._listeners):
            listener(event)
