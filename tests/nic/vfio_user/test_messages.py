from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nic.vfio_user.messages import (
    DMA_MAP,
    ERROR,
    HEADER,
    MESSAGE_MAX,
    NO_REPLY,
    REPLY,
    VERSION,
    BadMessage,
    Header,
    Message,
    capabilities_of,
    emit_version,
    error_to,
    reply_to,
)


@given(st.binary(min_size=HEADER.size, max_size=HEADER.size))
def test_a_header_is_read_or_bad(octets: bytes) -> None:
    try:
        header = Header.parse(memoryview(octets))
    except BadMessage:
        return
    assert HEADER.size <= header.size <= MESSAGE_MAX
    assert HEADER.pack(*header) == octets


@pytest.mark.parametrize("size", [0, 15, MESSAGE_MAX + 1, 0xFFFFFFFF])
def test_a_size_that_no_message_has(size: int) -> None:
    with pytest.raises(BadMessage):
        Header.parse(memoryview(HEADER.pack(1, 2, size, 0, 0)))


def test_replies_say_whose_they_are() -> None:
    header = Header(7, 9, 32, 0, 0)
    assert HEADER.unpack_from(reply_to(header, b"abc")) == (7, 9, 19, REPLY, 0)
    assert error_to(header, 22) == HEADER.pack(7, 9, 16, REPLY | ERROR, 22)
    assert header.wants_reply
    assert not header._replace(flags=NO_REPLY).wants_reply


@given(st.binary(max_size=40))
def test_a_payload_is_long_enough_or_bad(payload: bytes) -> None:
    message = Message(Header(1, 2, 16 + len(payload), 0, 0), payload, [])
    if len(payload) < DMA_MAP.size:
        with pytest.raises(BadMessage):
            message.fields(DMA_MAP)
    else:
        assert len(message.fields(DMA_MAP)) == 5


@given(st.binary())
def test_capabilities_are_an_object_or_bad(octets: bytes) -> None:
    try:
        assert isinstance(capabilities_of(octets), dict)
    except BadMessage:
        pass


@pytest.mark.parametrize(
    "octets", [b"[" * 8000, b"{", b"[]", b'{"capabilities": 3}', b"\xff", b'{"capabilities":NaNa}']
)
def test_bad_capabilities(octets: bytes) -> None:
    with pytest.raises(BadMessage):
        capabilities_of(octets)


def test_a_version_is_read_as_written() -> None:
    octets = emit_version({"max_msg_fds": 16})
    assert capabilities_of(octets[VERSION.size :]) == {"max_msg_fds": 16}
    assert capabilities_of(b"") == capabilities_of(b"\0") == {}
