"""How much room for recvmsg: the size is known only when the packet has been received.

Three ways to a TCP payload that waits: claim as much as could come and commit what did (as it is);
ask the socket first, with FIONREAD, and claim that; receive into a buffer of 4,096 bytes, then
claim and copy. The guest's buffers decide what a claim that is too large costs: with one descriptor
per frame nothing, with many that have to be looked at, translated and left over, something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.measure import Effort, progress, turn_about
from benchmarks.questions.rig import (
    BATCH,
    HEADER_LEN,
    HEADERS,
    LENGTHS,
    MSG_PEEK,
    LanceRig,
    queued,
    receive,
    waiting,
)
from slirp.host.attachment import payload_views, write_headers

MSS: Final = 1460  # bytes: the most that may come
WAITING: Final = (1, 64, 256, 512, 1024, 1460)  # bytes that have come
OWN: Final = 4096  # bytes of a buffer of one's own: the size that the discussion took


class SetUp(NamedTuple):
    buffer: int  # bytes of a descriptor
    label: str


SET_UPS: Final = (
    SetUp(1544, "a descriptor per frame"),
    SetUp(128, "buffers of 128 bytes, 12 descriptors per full frame"),
)


def room(effort: Effort) -> Answer:
    """Claim the most and trim, ask first, or a buffer of one's own."""
    tables = []
    for set_up in SET_UPS:
        rows: list[tuple[Cell, ...]] = []
        with LanceRig(buffer=set_up.buffer) as rig:
            for size in effort.some(WAITING):
                progress(f"room: {set_up.label}, {size}")
                rows.append((size, *_measure(rig, size, effort)))
        head = (
            "bytes that came",
            "claim 1,460 and trim, µs",
            "FIONREAD first, µs",
            "own buffer, then copy, µs",
            "FIONREAD ÷ trim",
            "own buffer ÷ trim",
        )
        tables.append(Table(head, rows, set_up.label.capitalize()))
    one, many = tables
    plot = Plot(
        "room",
        "Asking with FIONREAD first, against claiming 1,460 bytes and trimming",
        "bytes that came",
        "times the CPU time of claiming and trimming",
        {
            SET_UPS[0].label: one.points(one.head[4]),
            "12 descriptors per full frame": many.points(many.head[4]),
        },
        log="x",
        one=True,
    )
    return Answer(tuple(tables), (plot,))


def _measure(rig: LanceRig, size: int, effort: Effort) -> list[Cell]:
    own = bytearray(OWN)
    payload = bytes(range(1, 11)) * 146
    with waiting(payload[:size]) as sock:

        def trimmed() -> None:
            receive(sock, rig.port, MSS)

        def asked() -> None:
            receive(sock, rig.port, min(MSS, queued(sock)))

        def own_buffer() -> None:
            got = sock.recv_into(own, MSS, MSG_PEEK)
            claim = rig.port.claim(HEADER_LEN + got, LENGTHS)
            views = payload_views(claim.iov.segments, LENGTHS, HEADER_LEN + got)
            at = 0
            for view in views:
                view[:] = own[at : at + len(view)]
                at += len(view)
            write_headers(claim.iov.segments, HEADERS, LENGTHS)
            claim.commit(HEADER_LEN + got)

        def turn(way: Callable[[], None]) -> Callable[[], None]:
            def once() -> None:
                for _ in range(BATCH):
                    way()
                rig.hand_over()

            return once

        one_each = {"trim": trimmed, "asked": asked, "own": own_buffer}
        for way in one_each.values():
            way()
            rig.hand_over(look=True)
            assert rig.last[HEADER_LEN : HEADER_LEN + size] == payload[:size]
        ways = {name: turn(way) for name, way in one_each.items()}
        times = turn_about(ways, effort, per_call=BATCH)
    return [*map(times.us, ways), *(times.ratio(name, "trim") for name in ("asked", "own"))]
