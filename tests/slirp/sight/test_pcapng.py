"""pcapng: what is written reads back, in both byte orders, and hostile files are only malformed."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.sight import pcapng
from slirp.sight.pcapng import (
    INBOUND,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    OUTBOUND,
    Interface,
    Packet,
    PcapngWriter,
    SplitWriter,
    read_packets,
)
from tests.kit.tshark import both, tshark

NOW: Final = 1_795_399_885_051_912_140  # nanoseconds since 1970
LANCE: Final = Interface("lance", LINKTYPE_ETHERNET, "the chip", 4)
IP: Final = Interface("ip", LINKTYPE_RAW)


class MemoryFile(io.BytesIO):
    """Keeps what was in it when it was closed."""

    final = b""

    def close(self) -> None:
        self.final = self.getvalue()
        super().close()


def clock() -> Callable[[], int]:
    ticks = iter(range(1 << 30))
    return lambda: NOW + next(ticks)


def written(*packets: tuple[Interface, bytes], comment: str = "") -> bytes:
    file = MemoryFile()
    with PcapngWriter(file, clock()) as writer:
        for interface, data in packets:
            writer.write(interface, [memoryview(data)], comment=comment)
    return file.final


def read(data: bytes) -> list[Packet]:
    return list(read_packets(io.BytesIO(data)))


interfaces = st.builds(
    Interface,
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    st.sampled_from([LINKTYPE_ETHERNET, LINKTYPE_RAW]),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from([None, 4]),
)


@given(
    st.lists(
        st.tuples(
            interfaces,
            st.lists(st.binary(max_size=20), max_size=4),
            st.text(st.characters(codec="utf-8"), max_size=20),
            st.sampled_from([0, INBOUND, OUTBOUND]),
            st.one_of(st.none(), st.integers(0, (1 << 64) - 1)),
            st.sampled_from([None, 4]),
        ),
        max_size=6,
    )
)
@settings(max_examples=60)
def test_reads_back_what_was_written_whatever_the_cuts(
    packets: list[tuple[Interface, list[bytes], str, int, int | None, int | None]],
) -> None:
    file = MemoryFile()
    with PcapngWriter(file, clock()) as writer:
        for interface, pieces, comment, direction, packet_id, fcs_len in packets:
            writer.write(
                interface,
                [memoryview(piece) for piece in pieces],
                comment=comment,
                direction=direction,
                packet_id=packet_id,
                fcs_len=fcs_len,
            )
    expected = [
        Packet(
            number,
            interface,
            NOW + number - 1,
            b"".join(pieces),
            sum(map(len, pieces)),
            (comment,) if comment else (),
            direction,
            packet_id,
            fcs_len or interface.fcs_len,
        )
        for number, (interface, pieces, comment, direction, packet_id, fcs_len) in enumerate(
            packets, 1
        )
    ]
    assert read(file.final) == expected


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def described(order: str, *options: bytes) -> bytes:
    return block(order, 1, struct.pack(order + "HHI", 1, 0, 0) + b"".join(options))


def enhanced(order: str, index: int, stamp: int, data: bytes, *options: bytes) -> bytes:
    head = struct.pack(order + "IIIII", index, stamp >> 32, stamp & 0xFFFFFFFF, len(data), 1500)
    return block(order, 6, head + data + bytes(-len(data) % 4) + b"".join(options))


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order: str) -> None:
    (packet,) = read(
        section(order)
        + described(order, option(order, 2, b"eth0"), option(order, 13, b"\4"))
        + enhanced(
            order,
            0,
            5_000_001,
            b"abcde",
            option(order, 1, b"one"),
            option(order, 1, b"two"),
            option(order, 2, struct.pack(order + "I", 2)),
            option(order, 5, struct.pack(order + "Q", 77)),
            option(order, 0, b""),
        )
    )
    interface = Interface("eth0", 1, "", 4)
    assert packet == Packet(
        1, interface, 5_000_001_000, b"abcde", 1500, ("one", "two"), OUTBOUND, 77, 4
    )


@pytest.mark.parametrize(
    ("resolution", "stamp", "expected"),
    [
        (b"\x06", 7, 7_000),  # microseconds
        (b"\x00", 7, 7_000_000_000),  # seconds
        (b"\x8a", 1024, 1_000_000_000),  # 2^-10 seconds
        (b"\x0c", 7_000, 7),  # picoseconds
    ],
)
def test_timestamp_resolutions(resolution: bytes, stamp: int, expected: int) -> None:
    (packet,) = read(
        section("<") + described("<", option("<", 9, resolution)) + enhanced("<", 0, stamp, b"")
    )
    assert packet.time_ns == expected


def test_timestamp_offset_is_signed_seconds() -> None:
    offset = option("<", 14, struct.pack("<q", -3))
    (packet,) = read(section("<") + described("<", offset) + enhanced("<", 0, 5_000_000, b""))
    assert packet.time_ns == 2_000_000_000


def test_a_new_section_forgets_interfaces_and_may_change_the_byte_order() -> None:
    first = section("<") + described("<") + enhanced("<", 0, 0, b"a")
    second = section(">") + described(">") + enhanced(">", 0, 0, b"b")
    assert [packet.data for packet in read(first + second)] == [b"a", b"b"]
    with pytest.raises(MalformedPacket, match="not described"):
        read(first + section("<") + enhanced("<", 0, 0, b"b"))


def test_blocks_of_other_types_are_skipped_and_simple_packets_read() -> None:
    simple = block("<", 3, struct.pack("<I", 3) + b"xyz")
    packets = read(section("<") + block("<", 4, b"names") + described("<") + simple)
    assert [(packet.data, packet.time_ns) for packet in packets] == [(b"xyz", 0)]


VALID: Final = section("<") + described("<") + enhanced("<", 0, 0, b"abcd")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a pcapng file"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "not a pcapng file"),  # classic pcap
        (enhanced("<", 0, 0, b""), "not a pcapng file"),  # no section before it
        (section("<")[:10], "file ends inside a block"),
        (VALID[:-1], "file ends inside a block"),
        (VALID + b"\6\0\0", "file ends inside a block"),
        (section("<")[:8] + bytes(20), "byte-order magic"),
        (VALID + struct.pack("<II", 6, 8), "block length"),
        (VALID + struct.pack("<II", 6, 0xFFFFFFFC), "block length"),
        (VALID + struct.pack("<II", 6, 33) + bytes(40), "block length"),
        (VALID + struct.pack("<III", 9, 12, 16), "block lengths differ"),
        (VALID + block("<", 6, bytes(8)), "block length"),
        (VALID + block("<", 1, bytes(4)), "block length"),
        (VALID + enhanced("<", 1, 0, b""), "packet of an interface that was not described"),
        (VALID + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 9, 9)), "packet length"),
        (VALID + enhanced("<", 0, 0, b"", b"\1\0\x50\0"), "option length"),
        (VALID + enhanced("<", 0, 0, b"", option("<", 2, b"abc")), "option length"),
        (VALID + block("<", 3, b""), "block length"),
        (section("<") + described("<", option("<", 9, b"")), "option length"),
        (VALID + enhanced("<", 0, 0, b"", option("<", 1, b"") * 300), "too many options"),
        (section("<") + described("<") * 1025, "too many interfaces"),
    ],
)
def test_what_breaks_the_rules_is_malformed(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket) as caught:
        read(data)
    assert (caught.value.layer, caught.value.reason) == ("pcapng", reason)


@given(st.binary(max_size=200), st.integers(0, len(VALID)), st.integers(0, 8))
@settings(max_examples=150)
def test_any_octets_raise_only_malformed(noise: bytes, at: int, dropped: int) -> None:
    with contextlib.suppress(MalformedPacket):
        for packet in read(VALID[:at] + noise + VALID[at + dropped :]):
            assert len(packet.data) <= pcapng.MAX_BLOCK_LEN


def test_a_block_that_claims_gigabytes_is_not_read() -> None:
    class Asked(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    file = Asked(section("<") + struct.pack("<II", 6, 0x7FFFFFFC))
    with pytest.raises(MalformedPacket):
        list(read_packets(file))
    assert file.most < 100


class Interrupted(MemoryFile):
    """Stores part of what it is given, then a Ctrl-C comes; later stores go well."""

    interruptions = 1

    def write(self, data: object, /) -> int:
        assert isinstance(data, bytes)
        if self.interruptions:
            self.interruptions -= 1
            super().write(data[: len(data) // 2])
            raise KeyboardInterrupt
        return super().write(data[: max(1, len(data) // 3)])  # and short stores are completed


def test_a_file_is_valid_after_ctrl_c_in_the_middle_of_a_store() -> None:
    file = Interrupted()
    writer = PcapngWriter(file, clock())
    writer.write(LANCE, [memoryview(b"first")])
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    writer.close()
    assert [packet.data for packet in read(file.final)] == [b"first"]


def test_nothing_is_stored_twice_when_flushed_twice() -> None:
    file = MemoryFile()
    writer = PcapngWriter(file, clock())
    writer.write(IP, [memoryview(b"a")])
    writer.flush()
    writer.flush()
    writer.write(IP, [memoryview(b"b")])
    writer.close()
    writer.close()
    assert [packet.data for packet in read(file.final)] == [b"a", b"b"]
    assert writer.packets == {"ip": 2}


def test_stores_are_large_and_of_whole_blocks() -> None:
    sizes: list[int] = []

    class Counting(MemoryFile):
        def write(self, data: object, /) -> int:
            assert isinstance(data, bytes)
            sizes.append(len(data))
            read(self.getvalue() + data)  # valid after each store
            return super().write(data)

    with PcapngWriter(Counting(), clock()) as writer:
        for _ in range(400):
            writer.write(IP, [memoryview(bytes(1500))])
    assert len(sizes) == 3
    assert min(sizes[:-1]) >= pcapng.WRITE_LEN


def test_a_pipe_needs_no_seek() -> None:
    class Pipe(MemoryFile):
        def seekable(self) -> bool:
            return False

        def seek(self, offset: int, whence: int = 0, /) -> int:
            raise io.UnsupportedOperation

    file = Pipe()
    with PcapngWriter(file, clock()) as writer:
        writer.write(IP, [memoryview(b"a")])
        writer.flush()
        writer.write(IP, [memoryview(b"b")])
    assert [packet.data for packet in read(file.final)] == [b"a", b"b"]


def test_split_keeps_a_file_for_each_interface(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "demo.pcapng", clock()) as writer:
        writer.write(IP, [memoryview(b"datagram")], packet_id=1)
        writer.write(LANCE, [memoryview(b"frame")], packet_id=1, comment="hello")
        writer.write(IP, [memoryview(b"another")], packet_id=2)
        writer.flush()
    assert writer.packets == {"ip": 2, "lance": 1}
    ip = read((tmp_path / "demo-ip.pcapng").read_bytes())
    lance = read((tmp_path / "demo-lance.pcapng").read_bytes())
    assert [(packet.data, packet.packet_id) for packet in ip] == [(b"datagram", 1), (b"another", 2)]
    assert [(packet.interface, packet.comments) for packet in lance] == [(LANCE, ("hello",))]


@both
def test_tshark_reads_names_comments_directions_and_nanoseconds(
    tmp_path: Path, version: str
) -> None:
    path = tmp_path / "named.pcapng"
    with PcapngWriter.create(path, clock()) as writer:
        writer.write(LANCE, [memoryview(bytes(64))], comment="c1", direction=INBOUND, packet_id=9)
        writer.write(IP, [memoryview(b"E" + bytes(19))], direction=OUTBOUND)
    fields = ["frame.interface_name", "frame.comment", "frame.packet_flags_direction"]
    fields += ["frame.packet_id", "frame.time_epoch"]
    shown = tshark(version, path, "-T", "fields", *(f"-e{field}" for field in fields))
    assert shown == [
        "lance\tc1\t0x00000001\t9\t1795399885.051912140",
        "ip\t\t0x00000002\t\t1795399885.051912141",
    ]


def test_scapy_reads_the_packets(tmp_path: Path) -> None:
    from scapy.utils import RawPcapNgReader

    path = tmp_path / "scapy.pcapng"
    path.write_bytes(written((LANCE, b"x" * 61), (IP, b"E" * 20), comment="hello"))
    with RawPcapNgReader(str(path)) as reader:
        seen = [(bytes(data), meta.ifname, meta.linktype) for data, meta in reader]
    assert seen == [(b"x" * 61, b"lance", 1), (b"E" * 20, b"ip", 101)]
