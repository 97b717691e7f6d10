from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.fdstream import Hangup
from nic.vfio_user.channel import Channel
from nic.vfio_user.messages import FDS_MAX, HEADER, BadMessage, Message


def a_message(number: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(number, 2, HEADER.size + len(payload), 0, 0) + payload


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    yield ours, channel
    channel.close()
    ours.close()


def drain(channel: Channel) -> list[Message]:
    messages = []
    while channel.read():
        while (message := channel.next()) is not None:
            messages.append(message)
    return messages


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=8), st.data())
@settings(max_examples=60, deadline=None)
def test_messages_cut_anywhere(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(a_message(n, payload) for n, payload in enumerate(payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < stop:
            ours.send(stream[start:stop])
            found += drain(channel)
    channel.close()
    ours.close()
    assert [m.payload for m in found] == payloads


def test_descriptors_stay_with_their_message(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    reader, writer = os.pipe()
    ours.send(a_message(0))
    socket.send_fds(ours, [a_message(1, b"x")], [reader])
    ours.send(a_message(2))
    socket.send_fds(ours, [a_message(3)], [reader, writer])
    messages = drain(channel)
    assert [len(m.fds) for m in messages] == [0, 1, 0, 2]
    for message in messages:
        for fd in message.fds:
            os.close(fd)
    os.close(reader)
    os.close(writer)


def test_too_many_descriptors(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    socket.send_fds(ours, [a_message(1)], [0] * (FDS_MAX + 1))
    with pytest.raises(BadMessage):
        drain(channel)


def test_descriptors_in_pieces_are_counted(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    message = a_message(1, bytes(40))
    for at in range(FDS_MAX):
        socket.send_fds(ours, [message[at : at + 1]], [0])
        drain(channel)
    socket.send_fds(ours, [message[FDS_MAX:-1]], [0])
    with pytest.raises(BadMessage):
        drain(channel)


def test_the_other_end_is_gone(ends: tuple[socket.socket, Channel]) -> None:
    ours, channel = ends
    ours.send(a_message(1)[:7])
    ours.close()
    with pytest.raises(Hangup, match="inside a message"):
        drain(channel)


def test_replies_that_nobody_takes(ends: tuple[socket.socket, Channel]) -> None:
    _, channel = ends

    def talk() -> None:
        for _ in range(10_000):
            channel.send(bytes(4096))

    with pytest.raises(Hangup, match="does not take"):
        talk()
