"""The TFTP server: a client made by hand, with a wire that loses and repeats, and time by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.services import tftp as server
from slirp.services.tftp import Closed, Opened, Reply, TftpServer
from slirp.wire import tftp as wire

CLIENT = (b"\x0a\0\2\x0f", 2000)
ROOM = 1472


class MemoryFile:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.closed = False

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def close(self) -> None:
        self.closed = True


class Big(MemoryFile):
    """Bytes that say where they are."""

    def __init__(self, size: int) -> None:
        super().__init__(b"")
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return bytes((offset // 8 + n) % 251 for n in range(length))


class MemoryFolder:
    def __init__(self, **files: MemoryFile) -> None:
        self.files = files
        self.asked: list[bytes] = []

    def open(self, name: bytes) -> MemoryFile:
        self.asked.append(name)
        try:
            return self.files[name.decode("latin-1")]
        except KeyError:
            raise FileNotFoundError(name) from None


class Client:
    """One client; `lose` decides about each packet of the server's."""

    def __init__(
        self, target: TftpServer, lose: Callable[[int], bool] = lambda n: False, now: float = 0.0
    ) -> None:
        self.target = target
        self.lose = lose
        self.now = now
        self.tid = wire.PORT
        self.got = b""
        self.block = 0
        self.block_len = 512
        self.window = 1
        self.packets = 0
        self.options: dict[bytes, bytes] = {}
        self.error: wire.Error | None = None
        self.open_ports: set[int] = set()

    def send(self, payload: bytes, at: int | None = None) -> list[wire.Packet]:
        at = self.tid if at is None else at
        return self.take(self.target.handle_datagram(payload, CLIENT, at, self.now, room=ROOM))

    def take(self, actions: list[server.Action]) -> list[wire.Packet]:
        came = []
        for action in actions:
            match action:
                case Opened(tid):
                    self.open_ports.add(tid)
                case Closed(tid):
                    self.open_ports.remove(tid)
                case Reply(_, tid, payload):
                    self.packets += 1
                    if not self.lose(self.packets):
                        self.tid = tid
                        came.append(wire.parse(payload))
        return came

    def fetch(self, name: bytes, **options: int) -> bytes:
        asked = {key.encode(): b"%d" % value for key, value in options.items()}
        request = wire.emit_request(wire.RRQ, name, b"octet", asked)
        came = self.send(request, wire.PORT)
        last = request
        for _ in range(100_000):
            done, answer = self.read(came)
            if done:
                return self.got
            if answer is not None:
                last = answer
                came = self.send(answer)
                if self.finished:
                    return self.got
                continue
            came = self.wait() or self.send(last, wire.PORT if last is request else None)
        raise AssertionError("endless")

    finished = False

    def read(self, came: list[wire.Packet]) -> tuple[bool, bytes | None]:
        answer = None
        for packet in came:
            match packet:
                case wire.OptionAck(options):
                    self.options = options
                    self.block_len = int(options.get(b"blksize", b"512"))
                    self.window = int(options.get(b"windowsize", b"1"))
                    answer = wire.emit_ack(0)
                case wire.Error():
                    self.error = packet
                    return True, None
                case wire.Data(number, payload) if number == (self.block + 1) % 65536:
                    self.block += 1
                    self.got += payload
                    self.finished = len(payload) < self.block_len
                    if self.finished or self.block % self.window == 0:
                        answer = wire.emit_ack(number)
                case wire.Data():
                    answer = wire.emit_ack(self.block % 65536)
        return False, answer

    def wait(self) -> list[wire.Packet]:
        at = self.target.poll_at()
        assert at is not None
        self.now = max(self.now, at)
        return self.take(self.target.handle_timeout(self.now))


def serving(content: bytes | MemoryFile) -> TftpServer:
    file = content if isinstance(content, MemoryFile) else MemoryFile(content)
    return TftpServer(MemoryFolder(file=file))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 100_000])
def test_a_file(size: int) -> None:
    content = bytes(n % 253 for n in range(size))
    client = Client(serving(content))
    assert client.fetch(b"file") == content
    assert client.block == size // 512 + 1  # RFC 1350 §6: a last block that is not full
    assert client.options == {}


def test_options_are_granted_as_far_as_they_go() -> None:
    client = Client(serving(bytes(10_000)))
    client.fetch(b"file", blksize=9000, tsize=0, timeout=3, windowsize=1000, unknown=1)
    assert client.options == {
        b"blksize": b"1468", b"tsize": b"10000", b"timeout": b"3", b"windowsize": b"64",
    }  # fmt: skip
    assert len(client.got) == 10_000


@pytest.mark.parametrize("size", [0, 7, 65465])
def test_a_block_size_that_cannot_be_is_refused(size: int) -> None:
    client = Client(serving(b"x"))
    client.fetch(b"file", blksize=size)
    assert client.error is not None
    assert client.error.code == wire.REFUSED_OPTION


@pytest.mark.parametrize("value", [b"-1", b"", b"1e3", b"99999999999999999999", b"\xb2"])
def test_a_value_that_is_no_number_is_passed_over(value: bytes) -> None:
    client = Client(serving(b"x"))
    request = wire.emit_request(wire.RRQ, b"file", b"octet", {b"blksize": value})
    assert client.send(request, wire.PORT) == [wire.Data(1, b"x")]


def test_block_numbers_roll_over() -> None:
    file = Big(8 * 65_540 + 3)
    client = Client(serving(file))
    got = client.fetch(b"file", blksize=8, windowsize=16)
    assert client.block == 65_541
    assert got[-3:] == file.read(8 * 65_540, 3)
    assert len(got) == file.size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 9000), st.sets(st.integers(1, 60)))
def test_whatever_is_lost_the_file_arrives(window: int, size: int, lost: set[int]) -> None:
    content = bytes(n * 7 % 256 for n in range(size))
    if any({n, n + 1, n + 2, n + 3} <= lost for n in lost):
        lost = {n for n in lost if n % 4}  # patience ends at RETRIES_MAX
    client = Client(serving(content), lambda n: n in lost)
    assert client.fetch(b"file", blksize=100, windowsize=window) == content


def test_silence_ends_a_transfer_and_later_its_port() -> None:
    target = serving(bytes(5000))
    client = Client(target)
    request = wire.emit_request(wire.RRQ, b"file", b"octet", {b"timeout": b"2"})
    client.send(request, wire.PORT)
    times = []
    while client.open_ports:
        client.wait()
        times.append(client.now)
    assert times[:5] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert times[5:] == [12.0, 17.0]  # given up; lingered
    assert target.stats["timed_out"] == 1
    assert target.poll_at() is None


def test_a_request_that_comes_again() -> None:
    """RFC 1123 §4.2.3.1 has the duplicate; row 25 of what was published has the second request."""
    target = serving(bytes(5000))
    client = Client(target)
    request = wire.emit_request(wire.RRQ, b"file", b"octet", {})
    first = client.send(request, wire.PORT)
    tid = client.tid
    assert client.send(request, wire.PORT) == first
    assert client.tid == tid
    client.send(wire.emit_ack(1))
    assert client.send(request, wire.PORT) == first  # in the middle of it: starts anew
    assert client.tid != tid
    assert client.send(wire.emit_ack(1), tid) == []  # the earlier one's port knows nobody


def test_an_acknowledgment_after_an_error_is_nothing() -> None:
    target = serving(file := MemoryFile(bytes(5000)))
    client = Client(target)
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", {}), wire.PORT)
    assert client.send(wire.emit_error(0, "enough")) == []
    assert file.closed
    assert client.send(wire.emit_ack(1)) == []
    assert client.send(wire.emit_ack(1), 40000) == []
    assert target.stats["aborted"] == 1


def test_an_acknowledgment_again_does_not_double_what_follows() -> None:
    """The Sorcerer's Apprentice, RFC 1123 §4.2.3.1."""
    client = Client(serving(bytes(5000)))
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", {}), wire.PORT)
    assert len(client.send(wire.emit_ack(1))) == 1
    assert client.send(wire.emit_ack(1)) == []
    assert client.send(wire.emit_ack(77)) == []  # nor one of a block that was never sent


def test_a_window_is_continued_where_it_broke() -> None:
    """RFC 7440 §3: and once only, if the same is said again."""
    client = Client(serving(bytes(5000)))
    options = {b"windowsize": b"4", b"blksize": b"512"}
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", options), wire.PORT)
    assert [p.block for p in client.send(wire.emit_ack(0)) if isinstance(p, wire.Data)] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    numbers = [p.block for p in client.send(wire.emit_ack(2)) if isinstance(p, wire.Data)]
    assert numbers == [3, 4, 5, 6]
    assert len(client.send(wire.emit_ack(2))) == 4
    assert client.send(wire.emit_ack(2)) == []


def test_a_stranger_is_told_and_disturbs_nothing() -> None:
    target = serving(bytes(5000))
    client = Client(target)
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", {}), wire.PORT)
    stranger = (CLIENT[0], 3000)
    (reply,) = target.handle_datagram(wire.emit_ack(1), stranger, client.tid, 0.0, room=ROOM)
    assert isinstance(reply, Reply)
    assert reply.client == stranger
    assert wire.parse(reply.payload) == wire.Error(wire.UNKNOWN_TID, b"not your transfer")
    error = wire.emit_error(5, "no")
    assert target.handle_datagram(error, stranger, client.tid, 0.0, room=ROOM) == []
    assert len(client.send(wire.emit_ack(1))) == 1


@pytest.mark.parametrize(
    ("opcode", "name", "mode", "code"),
    [
        (wire.WRQ, b"file", b"octet", wire.ACCESS_VIOLATION),
        (wire.RRQ, b"file", b"netascii", wire.UNDEFINED),
        (wire.RRQ, b"other", b"octet", wire.NOT_FOUND),
        (wire.RRQ, b"", b"octet", wire.NOT_FOUND),
        (wire.RRQ, b"/", b"octet", wire.NOT_FOUND),
        (wire.RRQ, b"x" * 300, b"octet", wire.NOT_FOUND),
    ],
)
def test_refusals(opcode: int, name: bytes, mode: bytes, code: int) -> None:
    client = Client(serving(b""))
    (error,) = client.send(wire.emit_request(opcode, name, mode, {}), wire.PORT)
    assert isinstance(error, wire.Error)
    assert error.code == code
    assert not client.open_ports


def test_backslashes_are_slashes() -> None:
    folder = MemoryFolder()
    target = TftpServer(folder)
    request = wire.emit_request(wire.RRQ, b"\\boot\\..\\bcd", b"octet", {})
    target.handle_datagram(request, CLIENT, wire.PORT, 0.0, room=ROOM)
    assert folder.asked == [b"boot/../bcd"]


def test_a_file_that_becomes_shorter_is_no_whole_file() -> None:
    file = MemoryFile(bytes(5000))
    client = Client(serving(file))
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", {}), wire.PORT)
    file.content = b""
    (error,) = client.send(wire.emit_ack(1))
    assert isinstance(error, wire.Error)
    assert file.closed


def test_transfers_are_bounded_and_shared() -> None:
    target = serving(bytes(5000))
    request = wire.emit_request(wire.RRQ, b"file", b"octet", {})

    def ask(number: int, port: str) -> list[server.Action]:
        client = (CLIENT[0], number)
        return target.handle_datagram(
            request, client, wire.PORT, float(number), room=ROOM, port=port
        )

    for number in range(server.TRANSFERS_MAX):
        assert not [a for a in ask(number, "greedy") if isinstance(a, Closed)]
    actions = ask(1000, "modest")
    assert len([a for a in actions if isinstance(a, Closed)]) == 1
    assert len([a for a in actions if isinstance(a, Reply)]) == 1
    assert len(target.forget_port("greedy")) == server.TRANSFERS_MAX - 1
    assert len(target.forget_port("modest")) == 1
    assert target.poll_at() is None


def test_what_is_no_request_is_nothing_to_the_port() -> None:
    client = Client(serving(b""))
    assert client.send(wire.emit_ack(1), wire.PORT) == []
    with pytest.raises(MalformedPacket):
        client.send(b"\0\1file", wire.PORT)


@given(st.lists(st.binary(max_size=80)))
def test_anything_raises_only_malformed(packets: list[bytes]) -> None:
    client = Client(serving(bytes(3000)))
    client.send(wire.emit_request(wire.RRQ, b"file", b"octet", {}), wire.PORT)
    for packet in packets:
        for at in (wire.PORT, client.tid):
            try:
                client.send(packet, at)
            except MalformedPacket:
                pass
