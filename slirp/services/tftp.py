"""The TFTP server of the virtual network: files of one folder, for reading (RFC 1350).

    handle_datagram(payload, client, at, now) ──► Reply …, Opened(tid), Closed(tid)
    handle_timeout(now)                       ──► the same

A read request makes a *transfer*, which answers from a port of its own (its TID, random) and knows
its client's; the caller is told which ports it has to listen at (`Opened`, `Closed`). Options:
blksize (RFC 2348), timeout and tsize (RFC 2349), windowsize (RFC 7440); what is granted stands in
the OACK. A block size is never more than what fits the MTU, so that nothing is fragmented.

Blocks are counted without end; only their lowest 16 bits are on the wire, and an acknowledgment
means the block of these that is within the window. So files of any length pass: block 65535 is
followed by 0. A block is read when it is sent, and again when it is sent again: none is held.

Who acknowledges a block in the middle of a window gets what follows it at once (RFC 7440 §3). The
last acknowledgment again is answered once per window, and not at all where the window is one block:
that would double every packet from there on. Silence is answered by the whole window again, up to
RETRIES_MAX times. A transfer that is over keeps its port for LINGER_FOR, so that what is still
under way finds it and not a port of the host's.

A request that comes again before its transfer has begun is answered by the same packet; one that
comes later starts anew. Transfers are bounded; at the bound one of the port with most gives way.

Which files there are is `folder`'s to say: `open` raises OSError (slirp.linux.beneath has one that
nothing leads out of).

Does not do: writing, netascii, multicast (RFC 2090).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable
from math import inf
from typing import Final, NamedTuple, Protocol, TypeAlias

from slirp.wire import tftp as wire

TRANSFERS_MAX: Final = 64  # at a time; at the bound one gives way
TIMEOUT: Final = 1.0  # seconds until a window is sent again
TIMEOUT_MIN, TIMEOUT_MAX = 1, 255  # seconds that a client may ask for, RFC 2349 §2
RETRIES_MAX: Final = 5  # windows sent again without an acknowledgment
LINGER_FOR: Final = 5.0  # seconds that a port is kept when its transfer is over
BLOCK_LEN: Final = 512  # bytes, RFC 1350 §2
BLOCK_MIN, BLOCK_MAX = 8, 65464  # bytes, RFC 2348 §2
WINDOW_MAX: Final = 64  # blocks; RFC 7440 §2 allows 65,535, a port's backlog does not
NUMBERS: Final = 1 << 16  # of blocks
NAME_MAX: Final = 255  # bytes
DIGITS_MAX: Final = 10  # of an option's value: 2^32 has as many
TID_MIN: Final = 49152  # RFC 6335 §6: ports that nobody is known by


class File(Protocol):
    size: int  # bytes

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes from there; fewer where the file ends. Raises OSError."""

    def close(self) -> None: ...


class Folder(Protocol):
    def open(self, name: bytes) -> File:
        """A regular file by its path in the folder. Raises OSError."""


class Reply(NamedTuple):
    client: Client
    tid: int  # the port that it comes from
    payload: bytes


class Opened(NamedTuple):
    """Datagrams to this port are for the server from now on."""

    tid: int


class Closed(NamedTuple):
    tid: int


Client: TypeAlias = tuple[bytes, int]  # address and port
Action: TypeAlias = Reply | Opened | Closed


class Refused(Exception):
    """A request that leads to no transfer: what the client is told."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Transfer:
    """One file on its way to one client. Blocks are numbered from 1."""

    __slots__ = (
        "acked",
        "block_len",
        "client",
        "due_at",
        "file",
        "is_over",
        "last",
        "oack",
        "port",
        "repeated",
        "request",
        "retries",
        "sent",
        "tid",
        "timeout",
        "used_at",
        "window",
    )

    def __init__(self, client: Client, tid: int, request: bytes, port: Hashable) -> None:
        self.client = client
        self.tid = tid
        self.request = request  # as it came, to know it again
        self.port = port
        self.file: File | None = None
        self.block_len = BLOCK_LEN
        self.window = 1
        self.timeout = TIMEOUT
        self.oack = b""  # as long as it is not acknowledged
        self.acked = 0  # blocks
        self.sent = 0  # blocks, at least once
        self.last = 0  # the number of the last block
        self.retries = 0
        self.repeated = False  # the last acknowledgment came again, and was answered
        self.is_over = False
        self.due_at = inf
        self.used_at = 0.0

    def packets(self) -> list[bytes]:
        """The OACK, or the blocks of the window that begins behind what is acknowledged."""
        if self.oack:
            return [self.oack]
        self.sent = min(self.acked + self.window, self.last)
        return [self._data(block) for block in range(self.acked + 1, self.sent + 1)]

    def _data(self, block: int) -> bytes:
        assert self.file is not None
        offset = (block - 1) * self.block_len
        size = min(self.block_len, self.file.size - offset)
        payload = self.file.read(offset, size) if size else b""
        if len(payload) != size:
            raise OSError("the file became shorter")
        return wire.emit_data(block % NUMBERS, payload)

    def acknowledged(self, number: int) -> int | None:
        """The block that this acknowledgment means; None: none that is under way."""
        block = self.acked + (number - self.acked) % NUMBERS
        return block if block <= self.sent else None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class TftpServer:
    """Transfers of one network."""

    def __init__(self, folder: Folder, urandom: Callable[[int], bytes] = os.urandom) -> None:
        self.stats: Counter[str] = Counter()
        self._folder = folder
        self._urandom = urandom
        self._by_tid: dict[int, _Transfer] = {}
        self._by_client: dict[Client, _Transfer] = {}  # those that are not over
        self._next_at = inf

    def handle_datagram(
        self, payload: memoryview | bytes, client: Client, at: int, now: float, *,
        room: int, port: Hashable = None,
    ) -> list[Action]:  # fmt: skip
        """What a guest sent to the port `at`. Raises MalformedPacket.

        `room`: bytes of a datagram that fit one packet; `port`: where the guest is, to share what
        there may be fairly.
        """
        packet = wire.parse(payload)
        if at == wire.PORT:
            if isinstance(packet, wire.Request):
                return self._handle_request(packet, bytes(payload), client, now, room, port)
            self.stats["ignored"] += 1
            return []
        transfer = self._by_tid.get(at)
        if transfer is None:
            return []
        if transfer.client != client:  # RFC 1350 §4: told so, and nothing else is disturbed
            self.stats["strangers"] += 1
            if isinstance(packet, wire.Error):
                return []
            return [Reply(client, at, wire.emit_error(wire.UNKNOWN_TID, "not your transfer"))]
        if transfer.is_over:
            return []
        if isinstance(packet, wire.Ack):
            return self._handle_ack(transfer, packet.block, now)
        if isinstance(packet, wire.Error):
            self.stats["aborted"] += 1
            return self._end(transfer, now)
        self.stats["ignored"] += 1
        return []

    def handle_timeout(self, now: float) -> list[Action]:
        """Send windows again, give transfers up, give ports back."""
        if now < self._next_at:
            return []
        actions: list[Action] = []
        for transfer in [t for t in self._by_tid.values() if t.due_at <= now]:
            if transfer.is_over:
                del self._by_tid[transfer.tid]
                actions.append(Closed(transfer.tid))
            elif transfer.retries >= RETRIES_MAX:
                self.stats["timed_out"] += 1
                actions += self._end(transfer, now)
            else:
                transfer.retries += 1
                self.stats["repeated"] += 1
                actions += self._send(transfer, now)
        self._next_at = min((t.due_at for t in self._by_tid.values()), default=inf)
        return actions

    def poll_at(self) -> float | None:
        """When something is due; it may be early."""
        return self._next_at if self._by_tid else None

    def forget_port(self, port: Hashable) -> list[Action]:
        """A port is gone: so are the transfers of its guests."""
        gone = [transfer for transfer in self._by_tid.values() if transfer.port is port]
        return [self._drop(transfer) for transfer in gone]

    def close(self) -> None:
        """Give all files back."""
        for transfer in list(self._by_tid.values()):
            self._drop(transfer)

    # Requests

    def _handle_request(
        self, request: wire.Request, payload: bytes, client: Client, now: float, room: int,
        port: Hashable,
    ) -> list[Action]:  # fmt: skip
        self.stats["requests"] += 1
        earlier = self._by_client.get(client)
        if earlier is not None:
            if earlier.request == payload and not earlier.acked:
                return self._send(earlier, now)  # the answer, or the request, took its time
            earlier_gone = self._end(earlier, now)
        else:
            earlier_gone = []
        transfer = _Transfer(client, self._new_tid(), payload, port)
        try:
            self._open(transfer, request, room)
        except Refused as refused:
            self.stats["refused"] += 1
            error = wire.emit_error(refused.code, refused.text)
            return [*earlier_gone, Reply(client, wire.PORT, error)]
        actions: list[Action] = [*earlier_gone, *self._make_room(), Opened(transfer.tid)]
        self._by_tid[transfer.tid] = self._by_client[client] = transfer
        return actions + self._send(transfer, now)

    def _open(self, transfer: _Transfer, request: wire.Request, room: int) -> None:
        """The file and the options. Raises Refused."""
        if request.opcode == wire.WRQ:
            raise Refused(wire.ACCESS_VIOLATION, "read only")
        if request.mode != b"octet":
            raise Refused(wire.UNDEFINED, "octet mode only")
        self._grant(transfer, request.options, room)
        name = request.name.replace(b"\\", b"/").lstrip(b"/")  # Windows' boot programs ask so
        if not 0 < len(name) <= NAME_MAX:
            raise Refused(wire.NOT_FOUND, "no such file")
        try:
            transfer.file = self._folder.open(name)
        except OSError:  # whatever stands in the way, a guest is not told
            raise Refused(wire.NOT_FOUND, "no such file") from None
        transfer.last = transfer.file.size // transfer.block_len + 1
        granted = self._granted(transfer, request.options)
        transfer.oack = wire.emit_oack(granted) if granted else b""

    def _grant(self, transfer: _Transfer, options: dict[bytes, bytes], room: int) -> None:
        """Take over what the client asks for, within bounds. Raises Refused."""
        size = _number(options, b"blksize")
        if size is not None:
            if not BLOCK_MIN <= size <= BLOCK_MAX:
                raise Refused(wire.REFUSED_OPTION, f"blksize is {BLOCK_MIN} to {BLOCK_MAX}")
            transfer.block_len = max(BLOCK_MIN, min(size, room - wire.HEADER_LEN))
        seconds = _number(options, b"timeout")
        if seconds is not None and TIMEOUT_MIN <= seconds <= TIMEOUT_MAX:
            transfer.timeout = float(seconds)
        blocks = _number(options, b"windowsize")
        if blocks is not None:
            if blocks < 1:
                raise Refused(wire.REFUSED_OPTION, "windowsize is 1 or more")
            transfer.window = min(blocks, WINDOW_MAX)

    def _granted(self, transfer: _Transfer, asked: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """What the OACK says, of what was asked and is known."""
        assert transfer.file is not None
        known: dict[bytes, int] = {
            b"blksize": transfer.block_len,
            b"tsize": transfer.file.size,
            b"windowsize": transfer.window,
        }
        seconds = _number(asked, b"timeout")
        if seconds == transfer.timeout:
            known[b"timeout"] = seconds
        return {
            name: b"%d" % known[name]
            for name in asked
            if name in known and _number(asked, name) is not None
        }

    def _make_room(self) -> list[Action]:
        if len(self._by_tid) < TRANSFERS_MAX:
            return []
        self.stats["displaced"] += 1
        over = [transfer for transfer in self._by_tid.values() if transfer.is_over]
        if over:
            return [self._drop(min(over, key=lambda transfer: transfer.due_at))]
        held = Counter(transfer.port for transfer in self._by_tid.values())
        ((greediest, _),) = held.most_common(1)
        theirs = [t for t in self._by_tid.values() if t.port == greediest]
        return [self._drop(min(theirs, key=lambda transfer: transfer.used_at))]

    def _new_tid(self) -> int:
        while True:
            tid = TID_MIN + int.from_bytes(self._urandom(2)) % (NUMBERS - TID_MIN)
            if tid not in self._by_tid:
                return tid

    # Transfers

    def _handle_ack(self, transfer: _Transfer, number: int, now: float) -> list[Action]:
        if transfer.oack:
            if number:
                self.stats["ignored"] += 1
                return []
            transfer.oack = b""
            return self._proceed(transfer, now)
        block = transfer.acknowledged(number)
        if block is None:
            self.stats["ignored"] += 1
            return []
        if block == transfer.acked:
            if transfer.window == 1 or transfer.repeated:
                return []
            transfer.repeated = True
            self.stats["repeated"] += 1
            return self._send(transfer, now)
        transfer.acked = block
        return self._proceed(transfer, now)

    def _proceed(self, transfer: _Transfer, now: float) -> list[Action]:
        transfer.retries = 0
        transfer.repeated = False
        if transfer.acked == transfer.last:
            self.stats["finished"] += 1
            return self._end(transfer, now)
        return self._send(transfer, now)

    def _send(self, transfer: _Transfer, now: float) -> list[Action]:
        transfer.used_at = now
        self._visit(transfer, now + transfer.timeout)
        client, tid = transfer.client, transfer.tid
        try:
            return [Reply(client, tid, packet) for packet in transfer.packets()]
        except OSError:
            self.stats["unreadable"] += 1
            error = Reply(client, tid, wire.emit_error(wire.UNDEFINED, "cannot read the file"))
            return [error, *self._end(transfer, now)]

    def _end(self, transfer: _Transfer, now: float) -> list[Action]:
        """The transfer is over; its port is kept for what is under way."""
        transfer.close()
        transfer.is_over = True
        if self._by_client.get(transfer.client) is transfer:
            del self._by_client[transfer.client]
        self._visit(transfer, now + LINGER_FOR)
        return []

    def _visit(self, transfer: _Transfer, at: float) -> None:
        transfer.due_at = at
        self._next_at = min(self._next_at, at)

    def _drop(self, transfer: _Transfer) -> Closed:
        transfer.close()
        del self._by_tid[transfer.tid]
        if self._by_client.get(transfer.client) is transfer:
            del self._by_client[transfer.client]
        return Closed(transfer.tid)


def _number(options: dict[bytes, bytes], name: bytes) -> int | None:
    """An option's value; None: it was not given, or is no number and is passed over (RFC 2347)."""
    value = options.get(name)
    if value is None or not value.isdigit() or len(value) > DIGITS_MAX:
        return None
    return int(value)
