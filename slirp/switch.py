"""The learning switch between the ports of one network.

A source address is remembered with the port that it was seen at; a frame for a known address goes
to that port, one for an unknown or a group address to all others. An address seen elsewhere has
moved there, as when a machine reconnects.

Each port has an allowance of addresses (a machine may be a bridge for machines of its own). One
that sends from ever new addresses pushes out its own only: frames to those are flooded again,
and nobody else's frames are.

Does not do: spanning trees (two ports bridged inside a guest are a loop), VLANs, ageing by time.
"""

from __future__ import annotations

from typing import Any, Final

MACS_PER_PORT: Final = 256  # addresses remembered per port; beyond it the oldest goes


class LearningSwitch:
    """MAC → port. `own`: the network's own address, which no guest can take."""

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._port_of: dict[bytes, Any] = {}
        self._macs_of: dict[Any, dict[bytes, None]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._port_of)

    def learn(self, mac: bytes, port: Any) -> None:
        """A frame from `mac` came in at `port`."""
        before = self._port_of.get(mac)
        if before is port or mac == self._own:
            return
        if before is not None:
            del self._macs_of[before][mac]
        macs = self._macs_of.setdefault(port, {})
        if len(macs) >= MACS_PER_PORT:
            oldest = next(iter(macs))
            del macs[oldest], self._port_of[oldest]
        macs[mac] = None
        self._port_of[mac] = port

    def lookup(self, mac: bytes) -> Any | None:
        """The port that leads to `mac`, or None: not known."""
        return self._port_of.get(mac)

    def forget_port(self, port: Any) -> None:
        """The port was taken off the network."""
        for mac in self._macs_of.pop(port, ()):
            del self._port_of[mac]
