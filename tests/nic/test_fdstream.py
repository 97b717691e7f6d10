"""The socket that descriptors come through, with the kernel at its other end."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from nic.fdstream import FdStream, Hangup, TooManyDescriptors, take_eventfd
from nic.port import Shortage

FDS_MAX = 3


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, FdStream]]:
    ours, theirs = socket.socketpair()
    stream = FdStream(theirs, FDS_MAX)
    yield ours, stream
    stream.close()
    ours.close()


def read(stream: FdStream, size: int = 100) -> bytes | None:
    area = bytearray(size)
    count = stream.read_into(memoryview(area))
    return None if count is None else bytes(area[:count])


def test_bytes_and_the_end(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    assert read(stream) is None
    ours.send(b"abc")
    assert [read(stream, 2), read(stream, 2), read(stream, 2)] == [b"ab", b"c", None]
    ours.close()
    assert read(stream) == b""


def test_a_read_ends_where_descriptors_came(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    reader, writer = os.pipe()
    ours.send(b"a")
    socket.send_fds(ours, [b"b"], [reader])
    ours.send(b"c")
    assert read(stream) == b"ab"
    (fd,) = stream.take_fds()
    assert (os.path.sameopenfile(fd, reader), os.get_inheritable(fd)) == (True, False)
    assert (read(stream), stream.take_fds()) == (b"c", [])
    for open_fd in (fd, reader, writer):
        os.close(open_fd)


def test_too_many_in_pieces(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    for _ in range(FDS_MAX):
        socket.send_fds(ours, [b"x"], [0])
        assert read(stream) == b"x"
    socket.send_fds(ours, [b"x"], [0])
    with pytest.raises(TooManyDescriptors, match="more than 3 descriptors"):
        read(stream)


def test_no_room_for_descriptors(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    socket.send_fds(ours, [b"x"], [0, 1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        with pytest.raises((TooManyDescriptors, Shortage)):
            read(stream)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_nobody_took_is_closed_with_it() -> None:
    ours, theirs = socket.socketpair()
    stream = FdStream(theirs, FDS_MAX)
    reader, writer = os.pipe()
    socket.send_fds(ours, [b"x"], [writer])
    read(stream)
    os.close(writer)
    stream.close()
    assert os.read(reader, 1) == b"", "nobody has the writing end any more"
    os.close(reader)
    ours.close()


def test_replies(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    stream.send(b"reply")
    assert ours.recv(100) == b"reply"

    def talk() -> None:
        for _ in range(10_000):
            stream.send(bytes(4096))

    with pytest.raises(Hangup, match="does not take its replies"):
        talk()
    ours.close()
    with pytest.raises(Hangup, match="lost its connection"):
        stream.send(b"reply")


def test_a_connection_that_is_reset(ends: tuple[socket.socket, FdStream]) -> None:
    ours, stream = ends
    stream.send(b"unread")
    ours.close()
    with pytest.raises(Hangup, match="lost its connection"):
        read(stream)


def test_eventfds() -> None:
    event, (reader, writer) = os.eventfd(0), os.pipe()
    assert take_eventfd(event)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event)
    assert not take_eventfd(reader)
    for fd in (event, reader, writer):
        os.close(fd)
