"""Vectors as text, the parts of frames, and the check that finds what disagrees."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP as TCPOf
from scapy.layers.inet import UDP as UDPOf
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from dma.iovec import Range
from slirp.errors import MalformedPacket
from slirp.sight.layout import (
    MAX_OPEN_FRAMES,
    STAGES,
    Disagreement,
    FrameLayout,
    Part,
    Segment,
    Vector,
    check,
    exchange,
    frames,
    from_words,
    has_fcs,
    in_words,
    parts_of,
    place,
    word_len,
)
from slirp.sight.pcapng import INBOUND, LINKTYPE_ETHERNET, Interface, Packet

MACS: Final = bytes.fromhex("08002001020352550a000202")
TCP: Final = bytes.fromhex("0050 0401 00000001 00000002 50 10 2000 0000 0000")
UDP: Final = bytes.fromhex("0043 0044 0010 0000")
ICMP: Final = bytes.fromhex("00000000 00010002")


def ipv4(protocol: int, segment: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    header_len = 20 + len(options)
    head = bytearray(header_len)
    head[0] = 0x40 | header_len // 4
    head[2:4] = (header_len + len(segment)).to_bytes(2, "big")
    head[6:8] = fragment.to_bytes(2, "big")
    head[9] = protocol
    head[20:] = options
    return bytes(head) + segment


def ethernet(ethertype: int, payload: bytes) -> bytes:
    return MACS + ethertype.to_bytes(2, "big") + payload


def with_fcs(frame: bytes) -> bytes:
    return frame + zlib.crc32(frame).to_bytes(4, "little")


DATA: Final = ethernet(0x800, ipv4(6, TCP + b"x" * 100))  # 154 bytes


@pytest.mark.parametrize(
    ("frame", "parts"),
    [
        (DATA, "ethernet 14 ipv4 20 tcp 20 payload 100"),
        (DATA + bytes(6), "ethernet 14 ipv4 20 tcp 20 payload 100 pad 6"),
        (ethernet(0x800, ipv4(17, UDP + bytes(8))), "ethernet 14 ipv4 20 udp 8 payload 8"),
        (ethernet(0x800, ipv4(1, ICMP + bytes(3))), "ethernet 14 ipv4 20 icmp 8 payload 3"),
        (
            ethernet(0x800, ipv4(6, TCP, options=bytes(8))),
            "ethernet 14 ipv4 28 tcp 20",
        ),
        (
            ethernet(0x800, ipv4(17, UDP, fragment=185)),
            "ethernet 14 ipv4 20 payload 8",  # not a first fragment: no UDP header in it
        ),
        (ethernet(0x806, bytes(28 + 18)), "ethernet 14 arp 28 pad 18"),
        (ethernet(0x88B5, bytes(46)), "ethernet 14 payload 46"),
        (ethernet(0x800, bytes(5)), "ethernet 14 payload 5"),
        (
            ethernet(0x86DD, b"\x60\0\0\0\0\x1c\x06" + bytes(33) + TCP + bytes(8)),
            "ethernet 14 ipv6 40 tcp 20 payload 8",
        ),
        (
            bytes(Ether() / IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / UDPOf() / b"xy"),
            "ethernet 14 ipv6 40 hopbyhop 8 routing 8 udp 8 payload 2",
        ),
        (
            bytes(Ether() / IPv6() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / TCPOf()),
            "ethernet 14 ipv6 40 destination 16 tcp 20",  # two of a kind side by side are one part
        ),
        (
            bytes(Ether() / IPv6() / IPv6ExtHdrFragment(m=1) / ICMPv6EchoRequest(data=b"abc")),
            "ethernet 14 ipv6 40 fragment 8 icmpv6 8 payload 3",
        ),
        (
            bytes(Ether() / IPv6() / IPv6ExtHdrFragment(offset=185, nh=17) / Raw(bytes(16))),
            "ethernet 14 ipv6 40 fragment 8 payload 16",
        ),
        (b"short", "payload 5"),
        (b"", ""),
    ],
)
def test_the_parts_of_frames(frame: bytes, parts: str) -> None:
    assert " ".join(f"{name} {length}" for name, length in parts_of(frame)) == parts


def test_the_parts_of_a_datagram_and_of_a_frame_with_fcs() -> None:
    assert parts_of(DATA[14:], raw_ip=True) == [("ipv4", 20), ("tcp", 20), ("payload", 100)]
    assert parts_of(with_fcs(DATA), fcs_len=4)[-2:] == [("payload", 100), ("fcs", 4)]


def test_the_cuts_that_the_stack_asked_for_win_where_they_name_the_same_headers() -> None:
    assert parts_of(DATA, (14, 24, 20))[1:] == [("ipv4", 24), ("tcp", 20), ("payload", 96)]
    assert parts_of(DATA, (54,)) == parts_of(DATA)


@given(st.binary(max_size=120), st.lists(st.integers(0, 60), max_size=4), st.booleans())
@settings(max_examples=150)
def test_parts_add_up_to_the_frame(frame: bytes, headers: list[int], raw_ip: bool) -> None:
    tagged = frame[:12] + b"\x08\x00" + frame[12:]
    extended = frame[:12] + b"\x86\xdd" + frame[12:18] + b"\0" + frame[18:]
    for octets in (frame, tagged, extended):
        parts = parts_of(octets, headers, raw_ip=raw_ip)
        assert sum(length for _, length in parts) == len(octets)
        assert all(length > 0 for _, length in parts)


ranges = st.lists(st.tuples(st.integers(0, 64), st.integers(1, 9)), max_size=6)
parts = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(1, 9)), max_size=5)


def addresses(where: Sequence[Range]) -> list[int]:
    return [address + i for address, length in where for i in range(length)]


@given(parts, ranges)
@settings(max_examples=150)
def test_place_gives_every_octet_its_name_and_address(
    named: list[Part], where: list[Range]
) -> None:
    segments = place(named, where)
    names = [name for name, length in named for _ in range(length)]
    known: list[int | None] = [*addresses(where)]
    known += [None] * len(names)
    assert [(name, at) for name, at in _octets(segments)] == list(zip(names, known, strict=False))
    ends = set(itertools.accumulate(length for _, length in named))
    cuts = set(itertools.accumulate(length for _, length in where))
    assert set(itertools.accumulate(length for _, _, length in segments)) <= ends | cuts


def _octets(segments: Sequence[Segment]) -> list[tuple[str, int | None]]:
    return [
        (name, None if address is None else address + i)
        for name, address, length in segments
        for i in range(length)
    ]


def test_a_vector_reads_as_documented() -> None:
    segments = place(
        [("ethernet", 14), ("ipv4", 20), ("tcp", 20), ("payload", 1460), ("fcs", 4)],
        [(0x1000, 1518)],
    )
    text = (
        "vector lance ethernet=0x001000+14 ipv4=0x00100e+20 tcp=0x001022+20 "
        "payload=0x001036+1460 fcs=0x0015ea+4"
    )
    assert Vector("lance", False, segments).emit() == text
    assert Vector.parse(text) == Vector("lance", False, segments)


vectors = st.builds(
    Vector,
    st.sampled_from(STAGES),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["ethernet", "ipv4", "payload", "fcs", "lane"]),
            st.one_of(st.none(), st.integers(0, (1 << 36) - 1)),
            st.integers(1, 70000),
        ),
        min_size=1,
        max_size=6,
    ).map(tuple),
    st.binary(max_size=16),
)


@given(vectors)
@settings(max_examples=100)
def test_a_vector_survives_its_own_text(vector: Vector) -> None:
    assert Vector.parse(vector.emit()) == vector


@pytest.mark.parametrize(
    ("comment", "reason"),
    [
        ("vector", "stage"),
        ("vector LANCE a=0x1+1", "stage"),
        ("vector lance", "no segments"),
        ("vector lance a=0x1+0", "segment"),
        ("vector lance ethernet=0x10", "segment"),
        ("vector lance ethernet=0x10+", "segment"),
        ("vector lance ethernet=10+14", "segment"),
        ("vector lance =0x10+14", "segment"),
        ("vector lance a=0x1+1 lanes=exchanged", "segment"),
        ("vector lance a=0x11111111111111111+1", "segment"),
        ("vector lance a=0x1+999999999", "segment"),
    ],
)
def test_comments_that_are_no_vector_text(comment: str, reason: str) -> None:
    with pytest.raises(MalformedPacket) as caught:
        Vector.parse(comment)
    assert (caught.value.layer, caught.value.reason) == ("vector", reason)


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_other_comments_are_left_alone(comment: str) -> None:
    assert Vector.parse("a remark: " + comment) is None


# Exchanged lanes: the byte of address x lies at x ^ 1.


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)), min_size=1, max_size=4),
    st.binary(min_size=1, max_size=30),
)
@settings(max_examples=150)
def test_words_give_the_octets_back(where: list[Range], frame: bytes) -> None:
    apart: list[Range] = []  # no two ranges share a word
    for address, length in where:
        apart.append((address + 256 * len(apart), length))
    frame = frame[: sum(length for _, length in apart)]
    ram = bytearray(b"-" * 2048)
    for address, octet in zip(addresses(apart), frame, strict=False):
        ram[address ^ 1] = octet
    words = bytearray()
    size = len(frame)
    for address, length in apart:
        length = min(length, size)
        size -= length
        if length:
            words += ram[address & ~1 : (address + length + 1) & ~1]
    assert len(words) == word_len(apart, len(frame))
    assert from_words(bytes(words), apart, len(frame)) == frame
    named = in_words([("payload", len(frame))], apart)
    assert sum(length for _, length in named) == len(words)
    assert Vector("ledma", True, place(named, [(0, len(words))])).frame_in(bytes(words)) == frame
    lanes = words.count(b"-") - frame.count(b"-")
    assert sum(length for name, length in named if name == "lane") == lanes


def test_an_odd_last_octet_lies_in_the_other_lane() -> None:
    assert in_words([("payload", 61), ("fcs", 4)], [(0x1000, 80)]) == [
        ("payload", 61),
        ("fcs", 4),
        ("lane", 1),
    ]
    assert in_words([("payload", 4)], [(0x1001, 4)]) == [("lane", 1), ("payload", 4), ("lane", 1)]


# The checker. One data frame at all five stages, as the chain makes it.

FRAME: Final = with_fcs(DATA)
LANCE_RANGES: Final = [(0x001FF0, 64), (0x004000, 94)]  # two descriptors
DVMA_RANGES: Final = [(0xFC001FF0, 64), (0xFC004000, 94)]
PHYS_RANGES: Final = [(0x9FF0, 16), (0x7000, 48), (0x3000, 94)]  # a page ends in the first


def packet(
    number: int, stage: str, data: bytes, vector: Vector, packet_id: int | None = 7
) -> Packet:
    interface = Interface(stage, LINKTYPE_ETHERNET)
    return Packet(number, interface, 0, data, len(data), (vector.emit(),), INBOUND, packet_id, None)


def chain(**changed: tuple[bytes, Vector]) -> list[Packet]:
    named = parts_of(FRAME, fcs_len=4)
    seen = {
        "ip": (DATA[14:], Vector("ip", False, place(named[1:-1], [(0, 140)]))),
        "ethernet": (DATA, Vector("ethernet", False, place(named[:-1], [(0, 154)]))),
        "lance": (FRAME, Vector("lance", False, place(named, LANCE_RANGES))),
        "ledma": (FRAME, Vector("ledma", False, place(named, DVMA_RANGES))),
        "memory": (FRAME, Vector("memory", False, place(named, PHYS_RANGES))),
    }
    seen.update(changed)
    return [
        packet(number, stage, data, vector)
        for number, (stage, (data, vector)) in enumerate(seen.items(), 1)
    ]


def first_disagreement(packets: Sequence[Packet]) -> Disagreement | None:
    return next(filter(None, map(check, frames(packets))), None)


def test_a_frame_that_agrees() -> None:
    (frame,) = frames(chain())
    assert [one.vector.stage for one in frame.seen] == list(STAGES)
    assert (frame.packet_id, frame.direction, frame.octets) == (7, INBOUND, 158)
    assert check(frame) is None


def test_exchanged_stages_agree_as_well() -> None:
    named = parts_of(FRAME, fcs_len=4)
    assert (
        first_disagreement(
            chain(
                ledma=(exchange(FRAME), Vector("ledma", True, place(named, DVMA_RANGES))),
                memory=(exchange(FRAME), Vector("memory", True, place(named, PHYS_RANGES))),
            )
        )
        is None
    )


def test_a_frame_of_the_guest_has_its_fcs_on_the_wire_only() -> None:
    named = parts_of(FRAME, fcs_len=4)
    assert (
        first_disagreement(
            chain(
                lance=(FRAME, Vector("lance", False, place(named, [(0x1000, 154)]))),
                ledma=(DATA, Vector("ledma", False, place(named[:-1], [(0xFC001000, 154)]))),
                memory=(DATA, Vector("memory", False, place(named[:-1], [(0x3000, 154)]))),
            )
        )
        is None
    )


def test_the_chip_pads_short_frames() -> None:
    short = ethernet(0x806, bytes(28))
    padded = with_fcs(short + bytes(18))
    named = parts_of(padded, fcs_len=4)
    packets = [
        packet(1, "ethernet", short, Vector("ethernet", False, place(named[:2], [(0, 42)]))),
        packet(2, "lance", padded, Vector("lance", False, place(named, [(0x1000, 64)]))),
    ]
    assert first_disagreement(packets) is None


PARTS: Final = parts_of(FRAME, fcs_len=4)
OTHER: Final = with_fcs(ethernet(0x800, ipv4(6, TCP + b"x" * 90)))
OTHER_PARTS: Final = parts_of(OTHER, fcs_len=4)
BAD_FCS: Final = FRAME[:-1] + bytes([FRAME[-1] ^ 1])
LONG_IHL: Final = FRAME[:14] + b"\x46" + FRAME[15:]


def moved(parts: Sequence[Part], name: str, by: int) -> list[Part]:
    """One byte or more goes from the part after `name` to it."""
    out = list(parts)
    at = [part[0] for part in out].index(name)
    out[at] = (name, out[at][1] + by)
    out[at + 1] = (out[at + 1][0], out[at + 1][1] - by)
    return out


def lance(parts: Sequence[Part], where: Sequence[Range] = LANCE_RANGES) -> Vector:
    return Vector("lance", False, place(parts, where))


def ledma(where: Sequence[Range]) -> Vector:
    return Vector("ledma", False, place(PARTS, where))


def memory(where: Sequence[Range]) -> Vector:
    return Vector("memory", False, place(PARTS, where))


def raw(stage: str, *segments: Segment) -> Vector:
    return Vector(stage, False, segments)


@pytest.mark.parametrize(
    ("stage", "data", "vector", "number", "reason"),
    [
        ("lance", FRAME, lance(moved(PARTS, "ipv4", 4)), 3, "ipv4 has 24 bytes in the vector, 20"),
        ("lance", FRAME, lance(moved(PARTS, "tcp", 12)), 3, "tcp has 32 bytes in the vector, 20"),
        ("lance", FRAME, lance(moved(PARTS, "ethernet", 4)), 3, "ethernet has 18 bytes"),
        ("lance", FRAME, lance([*PARTS[:2], ("payload", 120), PARTS[-1]]), 3, "payload where the"),
        ("lance", FRAME, lance([("ethernet", 14), ("ipv6", 20), *PARTS[2:]]), 3, "ipv6 where the"),
        ("lance", LONG_IHL, lance(PARTS), 3, "ipv4 has 20 bytes in the vector, 24 by its header"),
        ("lance", FRAME, lance([*PARTS[:-1], ("fcs", 3)]), 3, "holds 157 bytes, the packet 158"),
        ("lance", FRAME, lance([*PARTS[:-1], ("pad", 4)]), 3, "an FCS that the vector does not"),
        ("lance", BAD_FCS, lance(PARTS), 3, "the bytes give"),
        ("lance", FRAME[:-1], lance(moved(PARTS, "payload", 1)[:-1]), 3, "the vector holds 155"),
        ("ethernet", DATA, raw("ethernet", *place(PARTS[:-1], [(1, 154)])), 2, "from 0"),
        ("ethernet", DATA, raw("wrong", *place(PARTS[:-1], [(0, 154)])), 2, "no such stage"),
        ("ip", DATA[14:] + b"\0", raw("ip", ("ipv4", 0, 141)), 1, "141 bytes in the vector, 20"),
        ("ledma", FRAME, ledma([(0xFC001FF0, 158)]), 4, "low 24 bits"),
        ("ledma", FRAME, ledma([(0xFC001FF0, 64), (0xFC004002, 94)]), 4, "low 24 bits"),
        ("ledma", FRAME, ledma([(0xFC001FF0, 64), (0xFD004000, 94)]), 4, "top byte"),
        ("memory", FRAME, memory([(0x9FF0, 16), (0x7000, 47), (0x3000, 95)]), 5, "place in its"),
        ("memory", FRAME, memory([(0x9FF0, 10), (0x7FFA, 54), (0x3000, 94)]), 5, "cut at 0x9ffa"),
        ("memory", FRAME, memory([(0x9FF2, 16), (0x7000, 48), (0x3000, 94)]), 5, "place in its"),
        ("memory", FRAME, memory([(0x9FF0, 16), (0x7002, 48), (0x3000, 94)]), 5, "place in its"),
        ("memory", with_fcs(DATA[:-1] + b"y"), memory(PHYS_RANGES), 5, "not the bytes of ip"),
        ("lance", FRAME, lance([*PARTS[:-2], ("payload", 99), ("fcs", 5)]), 3, "5 bytes of FCS"),
        ("memory", OTHER, Vector("memory", False, place(OTHER_PARTS, PHYS_RANGES)), 5, "of ip: "),
        (
            "memory",
            with_fcs(DATA + b"\0"),
            Vector("memory", False, place([*PARTS[:-1], ("pad", 1), PARTS[-1]], [(0x9FF0, 159)])),
            5,
            "padded to 155 bytes",
        ),
    ],
)
def test_the_first_disagreement_is_named(
    stage: str, data: bytes, vector: Vector, number: int, reason: str
) -> None:
    found = first_disagreement(chain(**{stage: (data, vector)}))
    assert found is not None
    assert (found.number, found.stage) == (number, vector.stage)
    assert reason in found.reason


@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255), st.sampled_from(STAGES))
@settings(max_examples=80)
def test_no_changed_octet_goes_unseen(at: int, change: int, stage: str) -> None:
    whole = {one.interface.name: one for one in chain()}[stage]
    at %= len(whole.data)
    data = whole.data[:at] + bytes([whole.data[at] ^ change]) + whole.data[at + 1 :]
    vector = Vector.parse(whole.comments[0])
    assert vector is not None
    assert first_disagreement(chain(**{stage: (data, vector)})) is not None


def test_the_same_stage_twice_is_a_disagreement() -> None:
    packets = chain()
    found = first_disagreement([*packets, packets[2]._replace(number=6)])
    assert found == Disagreement(6, "lance", "the same stage twice for one frame")
    assert str(found) == "packet 6, stage lance: the same stage twice for one frame"


def test_the_chip_and_ram_without_ledma_between_them() -> None:
    """A split capture of which one file is missing."""
    packets = [one for one in chain() if one.interface.name != "ledma"]
    assert first_disagreement(packets) is None
    moved_on = Vector("memory", False, place(PARTS, [(0x9FF4, 16), (0x7004, 142)]))
    packets[-1] = packet(4, "memory", FRAME, moved_on)
    found = first_disagreement(packets)
    assert found is not None
    assert "is not at the place in its page that 0x1ff0 has" in found.reason


def test_frames_without_an_id_are_checked_alone() -> None:
    packets = [one._replace(packet_id=None) for one in chain()]
    assert [len(frame.seen) for frame in frames(packets)] == [1] * 5
    assert first_disagreement(packets) is None


def test_packets_without_a_vector_are_passed_over() -> None:
    plain = chain()[0]._replace(comments=("seen in passing",))
    assert list(frames([plain, plain._replace(comments=())])) == []


def test_open_frames_are_bounded() -> None:
    one = chain()[2]
    many = (one._replace(packet_id=number) for number in range(MAX_OPEN_FRAMES + 1))
    stream = frames(many)
    first: FrameLayout = next(stream)
    assert first.packet_id == 0
    assert sum(1 for _ in stream) == MAX_OPEN_FRAMES


def test_has_fcs() -> None:
    assert has_fcs(FRAME)
    assert not has_fcs(DATA)
    assert not has_fcs(b"\0\0\0\0")
