"""A connection as plain numbers, to go on in another process.

A connection holds no payload, so its numbers are all of it, and `carried` makes them a dict that
JSON can hold; `resumed` makes the connection again. Instants are of CLOCK_MONOTONIC, which every
process of a host has alike. What goes on from where it was: both sequence spaces, windows, the
timers, timestamps, state and deadlines. What is begun anew: loss recovery (the retransmission timer
runs, and finds what is lost), and bytes ahead of their turn, which are forgotten as RFC 2018 §8
allows: the guest sends them again.

Does not do: sockets (slirp.host.handover).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from slirp.tcp.connection import Connection
from slirp.tcp.lifecycle import Lifecycle, State
from slirp.tcp.receive import Receive
from slirp.tcp.send import Send
from slirp.tcp.timestamps import Timestamps

_SEND: Final = (
    "due", "eof", "fin_sent", "iss", "max", "max_wnd", "mss", "resent", "una", "wnd", "wscale",
)  # fmt: skip
_TIMER: Final = (
    "at", "persisting", "retries", "rto", "rttvar", "srtt", "timed_at", "timed_seq",
)  # fmt: skip
_RECEIVE: Final = ("_own_mss", "_room_max", "adv", "irs", "last_ack", "nxt", "told", "wscale")
_LIFE: Final = ("_keepalive", "heard_at", "idle_at", "probes")
_TIMESTAMPS: Final = ("length", "offset", "recent")
_OWN: Final = ("_own_mss", "_refuse_seq", "_sack_on", "_wscale_on")


def carried(conn: Connection) -> dict[str, Any]:
    """Its numbers."""
    return {
        "send": _values(conn.send, _SEND),
        "timer": _values(conn.send.timer, _TIMER),
        "receive": _values(conn.receive, _RECEIVE),
        "life": {**_values(conn.life, _LIFE), "state": conn.life.state.value},
        "timestamps": _values(conn.timestamps, _TIMESTAMPS),
        "own": _values(conn, _OWN),
    }


def resumed(values: Mapping[str, Any], now: float) -> Connection:
    """The connection that has these numbers. Raises ValueError, KeyError or TypeError."""
    life = Lifecycle(State(values["life"]["state"]), now, 0.0)
    _set(life, values["life"], _LIFE)
    send, receive, timestamps = Send(0), Receive(0, 0, 0, 0), Timestamps(0)
    _set(send, values["send"], _SEND)
    _set(send.timer, values["timer"], _TIMER)
    _set(receive, values["receive"], _RECEIVE)
    _set(timestamps, values["timestamps"], _TIMESTAMPS)
    conn = Connection(send, receive, life, timestamps, 0)
    _set(conn, values["own"], _OWN)
    if send.flight and send.timer.at is None:
        send.timer.arm(now)
    conn.settle()
    return conn


def _values(part: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def _set(part: object, values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = values[name]
        if value is not None and not isinstance(value, int | float):
            raise TypeError(name)
        setattr(part, name, value)
