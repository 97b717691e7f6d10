from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.ip.ipv4_fragments import Ipv4Reassembler, fragment
from slirp.ip.reassembly import (
    DATAGRAMS_MAX,
    FRAGMENT_COST,
    FRAGMENTS_MAX,
    MEMORY_MAX,
    TIMEOUT,
)
from slirp.wire.ipv4 import PROTOCOL_ICMP, PROTOCOL_UDP, Ipv4Header
from tests.kit.cuts import cuts
from tests.kit.oracle import attempt

GUEST = bytes([10, 0, 2, 15])
SERVER = bytes([192, 0, 2, 1])
REASONS = {
    "empty fragment",
    "fragment length",
    "fragment beyond 65535 bytes",
    "fragment of a discarded datagram",
    "overlapping fragments",
    "too many fragments",
}


def piece(
    start: int, size: int, *, more: bool, ident: int = 1, ihl: int = 20, protocol: int = 17
) -> Ipv4Header:
    options = b"\x01" * (ihl - 20)
    return Ipv4Header(
        ihl, 0, ihl + size, ident, False, more, start, 64, protocol, 0, GUEST, SERVER, options
    )


def octets(start: int, size: int) -> bytes:
    """What belongs at these offsets of the one payload that the tests know."""
    return bytes(n * 7 + n // 251 & 255 for n in range(start, start + size))


class Sender:
    """Hands fragments to a reassembler; payload that tells where it belongs."""

    def __init__(self) -> None:
        self.reassembler = Ipv4Reassembler()
        self.now = 0.0

    def send(
        self, start: int, size: int, *, more: bool = True, ident: int = 1, ihl: int = 20,
        data: bytes | None = None,
    ) -> tuple[Ipv4Header, IoVec] | None:  # fmt: skip
        payload = IoVec.of(octets(start, size) if data is None else data)
        header = piece(start, size, more=more, ident=ident, ihl=ihl)
        return self.reassembler.handle_fragment(header, payload, self.now)

    def is_refused(self, reason: str, start: int, size: int, more: bool = True) -> None:
        with pytest.raises(MalformedPacket) as caught:
            self.send(start, size, more=more)
        assert (caught.value.layer, caught.value.reason) == ("ipv4", reason)


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_fragments_in_any_order(sender: Sender, order: tuple[int, ...]) -> None:
    pieces = [(0, 1480, True), (1480, 1480, True), (2960, 40, False)]
    results = [sender.send(pieces[n][0], pieces[n][1], more=pieces[n][2]) for n in order]
    assert results[:2] == [None, None]
    assert results[2] is not None
    header, payload = results[2]
    assert bytes(payload) == octets(0, 3000)
    assert (header.total_len, header.is_fragment) == (3020, False)
    assert sender.reassembler.copied_bytes == 3000
    assert (len(sender.reassembler), sender.reassembler.memory) == (0, 0)
    assert sender.reassembler.poll_at() is None


def test_a_whole_packet_passes_as_it_is(sender: Sender) -> None:
    payload = IoVec.of(b"whole")
    header = piece(0, 5, more=False)
    assert sender.reassembler.handle_fragment(header, payload, 0.0) == (header, payload)
    assert sender.reassembler.copied_bytes == 0


@given(cuts(min_size=100, max_size=4000), st.integers(68, 1500), st.randoms(use_true_random=False))
def test_what_was_fragmented_comes_together(
    data: tuple[bytes, IoVec], mtu: int, shuffler: random.Random
) -> None:
    flat, payload = data
    packets = fragment(piece(0, 0, more=False, protocol=PROTOCOL_UDP), payload, mtu)
    shuffler.shuffle(packets)
    reassembler = Ipv4Reassembler()
    results = [
        reassembler.handle_fragment(Ipv4Header.parse(head, 20 + len(body)), body, 0.0)
        for head, body in packets
    ]
    assert results[:-1] == [None] * (len(packets) - 1)
    assert results[-1] is not None
    assert bytes(results[-1][1]) == flat


def test_the_guests_buffers_are_free_at_once(sender: Sender) -> None:
    buffer = bytearray(octets(0, 8))
    sender.reassembler.handle_fragment(piece(0, 8, more=True), IoVec.of(buffer), 0.0)
    buffer[:] = bytes(8)
    whole = sender.send(8, 8, more=False)
    assert whole is not None
    assert bytes(whole[1]) == octets(0, 16)


def test_datagrams_do_not_mix(sender: Sender) -> None:
    sender.send(0, 8, ident=1)
    sender.send(0, 8, ident=2)
    other = piece(8, 8, more=False, protocol=PROTOCOL_ICMP)
    assert sender.reassembler.handle_fragment(other, IoVec.of(octets(8, 8)), 0.0) is None
    assert sender.send(8, 8, more=False, ident=2) is not None
    assert len(sender.reassembler) == 2


# CVE-2018-11806, CVE-2019-14378: a tiny first fragment and a huge one after it, and the reverse
@pytest.mark.parametrize(("first", "second"), [(8, 65000), (65000, 8), (16384, 32768)])
def test_growth(sender: Sender, first: int, second: int) -> None:
    assert sender.send(0, first) is None
    whole = sender.send(first, second, more=False)
    assert whole is not None
    assert bytes(whole[1]) == octets(0, first + second)


# CVE-2018-11806, second half: growth after an overlap was trimmed; here nothing is trimmed
def test_growth_after_an_overlap(sender: Sender) -> None:
    sender.send(0, 16)
    sender.is_refused("overlapping fragments", 8, 60000)
    assert sender.reassembler.memory == 0
    sender.is_refused("fragment of a discarded datagram", 16, 40000, more=False)


# CVE-2019-15890: one fragment covers and evicts queued ones, in every order
@pytest.mark.parametrize(
    "order",
    list(itertools.permutations([(8, 8, True), (24, 8, True), (0, 48, True), (40, 24, False)])),
)
def test_overlaps_complete_nothing(sender: Sender, order: list[tuple[int, int, bool]]) -> None:
    reasons = []
    for start, size, more in order:
        header = piece(start, size, more=more)
        payload = IoVec.of(octets(start, size))
        result = attempt(sender.reassembler.handle_fragment, header, payload, 0.0)
        assert result is None or isinstance(result, MalformedPacket)
        if isinstance(result, MalformedPacket):
            reasons.append(result.reason)
    assert reasons[0] == "overlapping fragments"
    assert set(reasons[1:]) <= {"fragment of a discarded datagram"}
    assert sender.reassembler.discarded == 1
    assert sender.reassembler.memory == 0


@pytest.mark.parametrize(
    ("start", "size", "more"),
    [
        (16, 16, True), (16, 32, True), (16, 24, False),  # same start: shorter, longer, the last
        (8, 16, True), (40, 16, True), (32, 16, False),  # over an end
        (24, 8, True), (24, 8, False),  # inside
        (0, 64, True), (8, 56, False),  # over all
        (56, 8, True), (64, 8, False), (8, 8, False),  # beyond the end, two ends
    ],
)  # fmt: skip
def test_any_overlap_or_contradiction(sender: Sender, start: int, size: int, more: bool) -> None:
    sender.send(0, 8)
    sender.send(16, 24)
    sender.send(48, 8, more=False)
    sender.is_refused("overlapping fragments", start, size, more)


def test_a_last_fragment_before_what_came(sender: Sender) -> None:
    sender.send(24, 8)
    sender.is_refused("overlapping fragments", 8, 8, more=False)


def test_duplicates_are_ignored(sender: Sender) -> None:
    for _ in range(3):
        assert sender.send(8, 8, more=False) is None
    assert sender.send(16, 8, ident=2) is None
    whole = sender.send(0, 8)
    assert whole is not None
    assert bytes(whole[1]) == octets(0, 16)
    assert sender.reassembler.discarded == 0
    assert sender.reassembler.copied_bytes == 24


def test_a_duplicate_of_the_last_after_completion_waits_and_goes(sender: Sender) -> None:
    sender.send(0, 8)
    assert sender.send(8, 8, more=False) is not None
    assert sender.send(8, 8, more=False) is None
    assert sender.reassembler.handle_timeout(TIMEOUT) == []
    assert len(sender.reassembler) == 0


def test_a_duplicate_with_other_octets_is_an_overlap(sender: Sender) -> None:
    sender.send(0, 8)
    with pytest.raises(MalformedPacket, match="overlapping"):
        sender.send(0, 8, data=b"otherwis")


def test_a_discarded_datagram_can_come_again_after_its_deadline(sender: Sender) -> None:
    sender.send(0, 8)
    sender.is_refused("overlapping fragments", 0, 16)
    sender.is_refused("fragment of a discarded datagram", 0, 8)
    assert sender.reassembler.handle_timeout(TIMEOUT) == []
    assert sender.reassembler.timed_out == 0
    sender.send(0, 8)
    assert sender.send(8, 8, more=False) is not None


# CVE-2020-1983, and the ping of death: sums beyond 65,535
def test_the_largest_datagram_and_one_octet_more(sender: Sender) -> None:
    sender.send(0, 65504)
    sender.is_refused("fragment beyond 65535 bytes", 65504, 12, more=False)
    whole = sender.send(65504, 11, more=False)
    assert whole is not None
    assert whole[0].total_len == 65535


@pytest.mark.parametrize(("start", "size"), [(65528, 8), (65528, 1480), (65520, 1), (65512, 65512)])
def test_offsets_near_the_top(sender: Sender, start: int, size: int) -> None:
    sender.is_refused("fragment beyond 65535 bytes", start, size, more=False)
    assert sender.reassembler.memory == 0


def test_many_small_fragments(sender: Sender) -> None:
    for n in range(FRAGMENTS_MAX - 1):
        assert sender.send(8 * n, 8) is None
    whole = sender.send(8 * FRAGMENTS_MAX - 8, 8, more=False)
    assert whole is not None
    assert bytes(whole[1]) == octets(0, 8 * FRAGMENTS_MAX)


def test_too_many_small_fragments(sender: Sender) -> None:
    for n in range(FRAGMENTS_MAX):
        sender.send(16 * n, 8)
    sender.is_refused("too many fragments", 16 * FRAGMENTS_MAX, 8)
    assert sender.reassembler.memory == 0


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("start", [0, 8, 65528])
def test_empty_fragments(sender: Sender, start: int, more: bool) -> None:
    if start or more:
        sender.is_refused("empty fragment", start, 0, more)
    assert len(sender.reassembler) == 0


@pytest.mark.parametrize("size", [1, 7, 9, 1479])
def test_only_the_last_fragment_may_be_odd(sender: Sender, size: int) -> None:
    sender.is_refused("fragment length", 0, size)
    sender.send(0, 8)
    whole = sender.send(8, size, more=False)
    assert whole is not None
    assert len(whole[1]) == 8 + size


# fragments of one echo with different header lengths: the whole has the first one's header
@pytest.mark.parametrize(("first", "last"), [(20, 60), (60, 20), (24, 40)])
@pytest.mark.parametrize("first_comes_last", [False, True])
def test_different_header_lengths(
    sender: Sender, first: int, last: int, first_comes_last: bool
) -> None:
    if first_comes_last:
        sender.send(8, 1000, more=False, ihl=last)
        whole = sender.send(0, 8, ihl=first)
    else:
        sender.send(0, 8, ihl=first)
        whole = sender.send(8, 1000, more=False, ihl=last)
    assert whole is not None
    header, payload = whole
    assert (header.ihl, len(header.options)) == (first, first - 20)
    assert header.total_len == first + 1008
    assert bytes(payload) == octets(0, 1008)
    assert Ipv4Header.parse(header.emit(), header.total_len).options == header.options


def test_a_first_header_too_long_for_the_rest(sender: Sender) -> None:
    sender.send(8, 65504, more=False)
    with pytest.raises(MalformedPacket, match="beyond 65535"):
        sender.send(0, 8, ihl=60)
    assert sender.reassembler.memory == 0


def test_df_does_not_stop_reassembly(sender: Sender) -> None:
    header = piece(0, 8, more=True)._replace(dont_fragment=True)
    sender.reassembler.handle_fragment(header, IoVec.of(octets(0, 8)), 0.0)
    assert sender.send(8, 8, more=False) is not None


def test_the_deadline_runs_from_the_first_fragment(sender: Sender) -> None:
    sender.send(8, 8, ident=1)
    sender.now = 5.0
    sender.send(0, 16, ident=2)
    sender.now = TIMEOUT - 1
    sender.send(0, 8, ident=1)
    assert sender.reassembler.poll_at() == TIMEOUT
    assert sender.reassembler.handle_timeout(TIMEOUT - 0.01) == []
    [(header, first)] = sender.reassembler.handle_timeout(TIMEOUT)
    assert (header, first) == (piece(0, 8, more=True, ident=1), octets(0, 8))
    assert sender.reassembler.poll_at() == 5.0 + TIMEOUT
    [(header, first)] = sender.reassembler.handle_timeout(5.0 + TIMEOUT)
    assert header.ident == 2
    assert sender.reassembler.timed_out == 2
    assert sender.reassembler.memory == 0


def test_without_its_first_fragment_a_datagram_goes_silently(sender: Sender) -> None:
    sender.send(8, 8, more=False)
    assert sender.reassembler.handle_timeout(TIMEOUT) == []
    assert sender.reassembler.timed_out == 1


def test_thousands_of_incomplete_datagrams(sender: Sender) -> None:
    for ident in range(4 * DATAGRAMS_MAX):
        sender.send(0, 8, ident=ident)
    assert len(sender.reassembler) == DATAGRAMS_MAX
    assert sender.reassembler.evicted == 3 * DATAGRAMS_MAX
    assert sender.reassembler.memory == DATAGRAMS_MAX * (8 + FRAGMENT_COST)
    # those that come now still come through
    assert sender.send(8, 8, more=False, ident=4 * DATAGRAMS_MAX - 1) is not None


def test_memory_is_bounded(sender: Sender) -> None:
    size = 65000
    for ident in range(2 * MEMORY_MAX // size):
        sender.send(0, size, ident=ident, data=bytes(size))
        assert sender.reassembler.memory <= MEMORY_MAX
    assert sender.reassembler.evicted > 0
    ident = 2 * MEMORY_MAX // size - 1
    assert sender.send(size, 8, more=False, ident=ident) is not None


def test_a_datagram_never_evicts_itself() -> None:
    """The oldest one grows while younger ones fill the memory."""
    sender = Sender()
    sender.send(0, 8, ident=0)
    for ident in range(1, MEMORY_MAX // (65000 + FRAGMENT_COST) + 1):
        sender.send(0, 65000, ident=ident, data=bytes(65000))
    evicted = sender.reassembler.evicted
    whole = sender.send(8, 60000, more=False, ident=0)
    assert whole is not None
    assert sender.reassembler.evicted == evicted + 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 12).map(lambda words: 8 * words),
            st.integers(0, 40),
            st.booleans(),
            st.integers(1, 2),
            st.sampled_from([20, 24, 60]),
            st.sampled_from([0.0, 0.0, TIMEOUT / 2]),
        ),
        max_size=30,
    )
)
def test_any_fragments_in_any_order(
    fragments: list[tuple[int, int, bool, int, int, float]],
) -> None:
    """Only whole datagrams come out, with the bytes that were sent at those offsets."""
    reassembler = Ipv4Reassembler()
    now = 0.0
    for start, size, more, ident, ihl, later in fragments:
        now += later
        reassembler.handle_timeout(now)
        header = piece(start, size, more=more, ident=ident, ihl=ihl)
        payload = IoVec.of(octets(start, size))
        result = attempt(reassembler.handle_fragment, header, payload, now)
        if isinstance(result, MalformedPacket):
            assert result.reason in REASONS
        elif result is not None:
            whole, body = result
            assert not whole.is_fragment
            assert whole.total_len == whole.ihl + len(body)
            assert bytes(body) == octets(0, len(body))
    assert len(reassembler) <= 2
    reassembler.handle_timeout(now + TIMEOUT)
    assert (len(reassembler), reassembler.memory) == (0, 0)
