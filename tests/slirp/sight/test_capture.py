"""The taps in a real chain: what each of them keeps, judged by the guest's memory and tshark."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from dma.iovec import IoVec
from dma.ledma import Mode
from dma.transfer import Direction, Lanes, Transfer
from nic.port import VNET_NONE, Claim, Frame, PortDefaults
from slirp.guest.driver import MAC, LanceDriver
from slirp.guest.machine import sun4m_board
from slirp.sight.capture import Capture
from slirp.sight.layout import STAGES, Disagreement, FrameLayout, Vector, check, exchange, frames
from slirp.sight.pcapng import (
    INBOUND,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    LINKTYPE_USER0,
    OUTBOUND,
    Packet,
    PcapngWriter,
    read_packets,
)
from tests.kit.tshark import BY_INTERFACE, both, tshark

GATEWAY: Final = "52:55:0a:00:02:02"
HEADERS: Final = (14, 20, 20)
DTCR: Final = 0x0008  # MODE: the guest makes the FCS
STARTED: Final = 1_795_399_885_000_000_000  # nanoseconds since 1970


class MemoryFile(io.BytesIO):
    final = b""

    def close(self) -> None:
        self.final = self.getvalue()
        super().close()


def segment(payload: bytes, *, to_guest: bool = True, **fields: Any) -> bytes:
    """A frame with a TCP segment and right checksums."""
    guest, gateway = "10.0.2.15", "10.0.2.2"
    ends = (gateway, guest) if to_guest else (guest, gateway)
    macs = (GATEWAY, MAC.hex(":")) if to_guest else (MAC.hex(":"), GATEWAY)
    ip = IP(src=ends[0], dst=ends[1])
    tcp = TCP(**({"sport": 80, "dport": 1025} if to_guest else {"sport": 1025, "dport": 80}))
    for name, value in fields.items():
        setattr(tcp, name, value)
    return bytes(Ether(src=macs[0], dst=macs[1]) / ip / tcp / Raw(payload))


class Chain:
    """A driver's machine with a tap at every stage."""

    def __init__(self, *, lanes: Mode = "in-place", **driver: Any) -> None:
        self.file = MemoryFile()
        ticks = itertools.count(STARTED, 1000)
        self.writer = PcapngWriter(self.file, lambda: next(ticks))
        self.capture = Capture(self.writer)
        self.board = sun4m_board(mode=lanes, wrap=self.capture.tap, scatter=True)
        self.driver = LanceDriver(self.board, self.board.lance, **driver)
        self.port = self.capture.port(self.board.lance)
        self.driver.start()

    def to_guest(self, frame: bytes, headers: Sequence[int] = HEADERS) -> list[bytes]:
        """Claim, fill, commit; what the driver then has."""
        claim = self.port.claim(len(frame), headers)
        assert claim is not None
        claim.iov.copy_from(frame)
        claim.commit(len(frame))
        return self.settle()

    def settle(self) -> list[bytes]:
        self.port.poll(0.0)
        self.driver.handle_interrupt()
        return self.driver.receive()

    def from_guest(self, *sent: bytes) -> list[bytes]:
        for frame in sent:
            assert self.driver.send(frame)
        seen = []
        for out in self.port.frames():
            seen.append(bytes(out.iov))
            out.release()
        self.settle()
        return seen

    def close(self) -> bytes:
        self.writer.close()
        self.board.close()
        return self.file.final

    def packets(self) -> list[Packet]:
        return list(read_packets(io.BytesIO(self.close())))


def layouts(packets: Sequence[Packet]) -> list[FrameLayout]:
    return list(frames(packets))


def disagreements(packets: Sequence[Packet]) -> list[Disagreement]:
    return [wrong for wrong in map(check, frames(packets)) if wrong is not None]


def by_stage(packets: Sequence[Packet]) -> dict[str, Packet]:
    return {packet.interface.name: packet for packet in packets}


def vector(packet: Packet) -> Vector:
    parsed = Vector.parse(packet.comments[0])
    assert parsed is not None
    return parsed


DATA: Final = segment(bytes(range(256)) * 5 + bytes(180))  # 1460 bytes of payload


def test_a_frame_to_the_guest_at_every_stage() -> None:
    chain = Chain()
    assert chain.to_guest(DATA) == [DATA]
    packets = chain.packets()
    assert [packet.interface.name for packet in packets] == [
        *("ip", "ethernet", "lance", "ledma", "memory")
    ]
    assert {packet.packet_id for packet in packets} == {1}
    assert {packet.direction for packet in packets} == {INBOUND}
    wire = DATA + zlib.crc32(DATA).to_bytes(4, "little")
    assert [packet.data for packet in packets] == [DATA[14:], DATA, wire, wire, wire]
    assert [packet.interface.linktype for packet in packets] == [LINKTYPE_RAW] + [1] * 4
    assert [packet.fcs_len for packet in packets] == [None, None, 4, 4, 4]
    assert packets[1].comments == (
        "vector ethernet ethernet=0x0000+14 ipv4=0x000e+20 tcp=0x0022+20 payload=0x0036+1460",
    )
    assert packets[2].comments == (
        "vector lance ethernet=0x001000+14 ipv4=0x00100e+20 tcp=0x001022+20 "
        "payload=0x001036+1460 fcs=0x0015ea+4",
    )
    assert disagreements(packets) == []


def test_a_frame_from_the_guest_at_every_stage_in_the_order_of_its_way() -> None:
    chain = Chain()
    sent = segment(b"GET / HTTP/1.0\r\n\r\n", to_guest=False)
    assert chain.from_guest(sent) == [sent]
    packets = chain.packets()
    assert [packet.interface.name for packet in packets] == [
        *("memory", "ledma", "lance", "ip", "ethernet")
    ]
    assert {packet.packet_id for packet in packets} == {1}
    assert {packet.direction for packet in packets} == {OUTBOUND}
    seen = by_stage(packets)
    assert seen["lance"].data == sent + zlib.crc32(sent).to_bytes(4, "little")
    assert seen["lance"].comments[0].endswith(" fcs=wire+4")
    assert seen["memory"].data == seen["ledma"].data == seen["ethernet"].data == sent
    assert disagreements(packets) == []


@pytest.mark.parametrize("mode", ["in-place", "bounce"])
@pytest.mark.parametrize("spare", [0, 1, 2, 3])
def test_exchanged_lanes_are_kept_as_ram_has_them(mode: Mode, spare: int) -> None:
    chain = Chain(lanes=mode, bswp=0)
    frame = DATA[: len(DATA) - spare]
    frame = segment(frame[54:])
    assert chain.to_guest(frame) == [frame]
    sent = segment(bytes(spare + 7), to_guest=False)
    assert chain.from_guest(sent) == [sent]
    packets = chain.packets()
    assert disagreements(packets) == []
    for layout in layouts(packets):
        assert [one.vector.exchanged for one in layout.seen] == [False] * 3 + [True] * 2
    inbound = by_stage(packets[:5])
    assert inbound["memory"].interface.linktype == LINKTYPE_USER0
    assert inbound["lance"].interface.linktype == LINKTYPE_ETHERNET
    assert inbound["lance"].data[:-4] == frame
    assert len(inbound["memory"].data) % 2 == 0
    assert exchange(inbound["memory"].data)[: len(frame)] == frame
    assert inbound["memory"].data == inbound["ledma"].data


def test_the_memory_packet_is_what_ram_holds_afterwards() -> None:
    """Read back through physical addresses that only the capture knows."""
    for options in ({"bswp": 1}, {"bswp": 0}, {"bswp": 0, "lanes": "bounce"}):
        chain = Chain(rx_buffer=700, **options)
        chain.to_guest(DATA)
        chain.writer.flush()
        packets = list(read_packets(io.BytesIO(chain.file.getvalue())))
        memory = by_stage(packets)["memory"]
        ram = b"".join(
            bytes(chain.board.memory.view(address, length))  # type: ignore[arg-type]
            for _, address, length in vector(memory).segments
            if address is not None
        )
        assert ram == memory.data
        chain.close()


def test_descriptors_and_pages_cut_the_vector() -> None:
    chain = Chain(rx_buffer=64, rx_count=128)
    for _ in range(4):
        assert chain.to_guest(DATA) == [DATA]
    packets = chain.packets()
    assert disagreements(packets) == []
    cut = [one.vector for layout in layouts(packets) for one in layout.seen]
    memory = [one for one in cut if one.stage == "memory"]
    assert any(len(one.segments) > 5 for one in memory)
    assert {len(one.runs()) for one in cut if one.stage == "ethernet"} == {1}
    assert max(len(one.runs()) for one in memory) > 1  # at least one page end was met


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1460), st.sampled_from([0, 1, 3])),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([64, 100, 1544, 4095]),
    st.sampled_from([0, 1]),
    st.sampled_from(["in-place", "bounce"]),
    st.integers(0, 3),
)
@settings(max_examples=40)
def test_any_traffic_agrees_with_its_vectors(
    traffic: list[tuple[bool, int, int]],
    rx_buffer: int,
    bswp: int,
    mode: Mode,
    rx_offset: int,
) -> None:
    chain = Chain(lanes=mode, bswp=bswp, rx_buffer=rx_buffer, rx_count=32, rx_offset=rx_offset)
    carried = 0
    for to_guest, size, options in traffic:
        frame = segment(bytes(size), to_guest=to_guest, options=[("NOP", None)] * options * 4)
        if len(frame) > 1514:
            continue
        carried += 1
        if to_guest:
            padded = frame.ljust(60, b"\0")
            assert chain.to_guest(frame, (14, 20, 20 + options * 4)) == [padded]
        else:
            assert chain.from_guest(frame) == [frame.ljust(60, b"\0")]
    packets = chain.packets()
    assert disagreements(packets) == []
    assert [len(layout.seen) for layout in layouts(packets)] == [5] * carried


def test_arp_is_no_datagram() -> None:
    chain = Chain()
    request = bytes(Ether(src=GATEWAY, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.2.15"))
    assert chain.to_guest(request, (14, 28)) == [request.ljust(60, b"\0")]
    packets = chain.packets()
    assert [packet.interface.name for packet in packets] == [
        *("ethernet", "lance", "ledma", "memory")
    ]
    assert vector(packets[1]).parts() == [("ethernet", 14), ("arp", 28), ("pad", 18), ("fcs", 4)]
    assert disagreements(packets) == []


def test_what_never_came_leaves_no_packet() -> None:
    chain = Chain()
    claim = chain.port.claim(1514, HEADERS)
    assert claim is not None
    claim.cancel()
    other = bytes(Ether(src=GATEWAY, dst="08:00:20:99:99:99") / IP() / UDP() / Raw(bytes(30)))
    assert chain.to_guest(other) == []  # the chip's filter refuses it
    assert {packet.interface.name for packet in chain.packets()} == {"ip", "ethernet"}


def test_no_room_is_no_claim() -> None:
    chain = Chain(rx_count=1)
    assert chain.port.claim(1514, HEADERS) is not None
    assert chain.port.claim(1514, HEADERS) is None
    assert chain.packets() == []


def test_the_stacks_cuts_name_the_headers_even_where_they_are_wrong() -> None:
    """Or the check would compare the bytes with themselves."""
    chain = Chain()
    chain.to_guest(DATA, (14, 24, 20))
    (wrong,) = disagreements(chain.packets())
    assert "ipv4 has 24 bytes in the vector, 20 by its header" in wrong.reason


def test_several_frames_of_the_guest_keep_their_ids() -> None:
    chain = Chain()
    sent = [segment(bytes([n]) * 40, to_guest=False) for n in (1, 2, 2, 3)]
    assert chain.from_guest(*sent) == sent
    packets = chain.packets()
    assert [len(layout.seen) for layout in layouts(packets)] == [5] * 4
    assert disagreements(packets) == []


def test_a_guest_that_makes_its_own_fcs() -> None:
    chain = Chain(mode=DTCR)
    sent = segment(b"hello", to_guest=False).ljust(60, b"\0")
    wire = sent + zlib.crc32(sent).to_bytes(4, "little")
    assert chain.from_guest(wire) == [sent]
    packets = chain.packets()
    seen = by_stage(packets)
    assert seen["lance"].data == seen["memory"].data == wire
    assert vector(seen["memory"]).parts()[-1] == ("fcs", 4)
    assert vector(seen["memory"]).segments[-1][1] is not None
    assert [len(layout.seen) for layout in layouts(packets)] == [5]
    assert disagreements(packets) == []


def test_after_the_end_nothing_is_kept_and_the_way_is_free() -> None:
    chain = Chain()
    chain.to_guest(DATA)
    chain.capture.end()
    assert chain.to_guest(DATA) == [DATA]
    assert chain.from_guest(DATA) == [DATA]
    assert chain.port.claim == chain.board.lance.claim
    assert len(chain.packets()) == 5


def test_claims_that_were_open_at_the_end_are_still_kept() -> None:
    chain = Chain()
    claim = chain.port.claim(len(DATA), HEADERS)
    assert claim is not None
    chain.capture.end()
    claim.iov.copy_from(DATA)
    claim.commit(len(DATA))
    assert chain.settle() == [DATA]
    assert len(chain.packets()) == 5


class OffloadPort(PortDefaults):
    """Takes and gives frames whose checksums are left to be done."""

    offload = True
    max_frame = 65549

    def __init__(self, *frames_: Frame) -> None:
        self.frames_ = frames_
        self.committed: list[tuple[bytes, bytes]] = []

    def claim(self, size: int, headers: Sequence[int] = ()) -> Claim:
        port, room = self, IoVec.of(bytearray(size)).cut(headers)

        class Room:
            iov = room

            def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
                port.committed.append((bytes(room)[:size], vnet))

            def cancel(self) -> None: ...

        return Room()

    def frames(self) -> Iterator[Frame]:
        yield from self.frames_

    def fileno(self) -> int:
        return 7


@pytest.mark.parametrize("size", [0, 1, 999, 40_000])
def test_a_checksum_that_is_left_to_be_done_is_done_in_the_capture_alone(size: int) -> None:
    whole = segment(bytes(range(256)) * (size // 256 + 1), to_guest=False)[: 54 + size]
    whole = segment(whole[54:], to_guest=False)
    part = bytearray(whole)
    pseudo = bytes(whole[26:34]) + struct.pack("!HH", 6, 20 + size)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    part[50:52] = (total % 65535).to_bytes(2, "big")
    vnet = struct.pack("=BBHHHH", 1, 1, 54, 1460, 34, 16)
    inner = OffloadPort(Frame(IoVec.of(bytes(part)), vnet))
    file = MemoryFile()
    writer = PcapngWriter(file, lambda: STARTED)
    port = Capture(writer).port(inner)
    assert (port.offload, port.max_frame, port.fileno(), port.poll(0.0)) == (True, 65549, 7, None)
    (frame,) = port.frames()
    assert bytes(frame.iov) == bytes(part)
    claim = port.claim(len(part), HEADERS)
    assert claim is not None
    claim.iov.copy_from(bytes(part))
    claim.commit(len(part), vnet)
    assert inner.committed == [(bytes(part), vnet)]
    writer.close()
    packets = list(read_packets(io.BytesIO(file.final)))
    kept = [packet.data for packet in packets if packet.interface.name == "ethernet"]
    assert kept == [whole, whole]
    assert disagreements(packets) == []


def test_a_vnet_header_that_points_nowhere_is_left_alone() -> None:
    vnet = struct.pack("=BBHHHH", 1, 0, 0, 0, 60000, 16)
    file = MemoryFile()
    writer = PcapngWriter(file, lambda: STARTED)
    list(Capture(writer).port(OffloadPort(Frame(IoVec.of(DATA), vnet))).frames())
    writer.close()
    assert [packet.data for packet in read_packets(io.BytesIO(file.final))] == [DATA[14:], DATA]


def test_an_inner_tap_alone_keeps_frames_too() -> None:
    file = MemoryFile()
    writer = PcapngWriter(file, lambda: STARTED)
    board = sun4m_board()
    tap = Capture(writer).tap("memory", board.memory)
    for headers in (None, HEADERS):
        transfer = Transfer(Direction.FROM_DEVICE, [(0x3000, 1514)], Lanes.STRAIGHT, headers)
        tap.open(transfer).copy_from(DATA)
        transfer.complete(len(DATA))
    writer.close()
    (packet,) = read_packets(io.BytesIO(file.final))
    assert (packet.data, packet.interface.name) == (DATA, "memory")
    board.close()


# tshark as the judge of a whole conversation

REQUEST: Final = b"GET /file HTTP/1.1\r\nHost: 10.0.2.2\r\n\r\n"
BODY: Final = bytes(range(256)) * 12
RESPONSE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
CHECKS: Final = ("ip.check_checksum", "tcp.check_checksum", "eth.check_fcs")
EACH_STAGE: Final = (
    *("-o", "tcp.analyze_sequence_numbers:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE"),
)
REASSEMBLED: Final = "tcp.reassembled.length"


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chain = Chain()
    chain.from_guest(segment(b"", to_guest=False, flags="S", seq=100))
    chain.to_guest(segment(b"", flags="SA", seq=500, ack=101))
    chain.from_guest(segment(REQUEST, to_guest=False, flags="PA", seq=101, ack=501))
    for at in range(0, len(RESPONSE), 1460):
        piece = RESPONSE[at : at + 1460]
        chain.to_guest(segment(piece, flags="A", seq=501 + at, ack=101 + len(REQUEST)))
    last = {"seq": 101 + len(REQUEST), "ack": 501 + len(RESPONSE)}
    chain.from_guest(segment(b"", to_guest=False, flags="A", **last))
    path = tmp_path_factory.mktemp("capture") / "conversation.pcapng"
    path.write_bytes(chain.close())
    return path


def shown_of(
    version: str, path: Path, show: str, *fields: str, options: Sequence[str] = ()
) -> list[str]:
    """One line per packet that `show` selects; no warning allowed."""
    words = [word for check in CHECKS for word in ("-o", f"{check}:TRUE")]
    words += [word for field in fields or ("frame.number",) for word in ("-e", field)]
    return tshark(version, path, "-Y", show, "-T", "fields", *words, *options)


@both
def test_tshark_finds_every_checksum_and_fcs_right(conversation: Path, version: str) -> None:
    wrong = "ip.checksum.status != 1 || tcp.checksum.status != 1"
    assert shown_of(version, conversation, wrong) == []
    assert shown_of(version, conversation, "eth.fcs.status == 0 || _ws.malformed") == []
    good = shown_of(version, conversation, "eth.fcs.status == 1", "frame.interface_name")
    count = len(shown_of(version, conversation, 'frame.interface_name == "lance"'))
    assert good.count("lance") == count > 0


@both
def test_tshark_dissects_http_at_every_stage(conversation: Path, version: str) -> None:
    fields = ("frame.interface_name", "http.request.method", "http.response.code")
    wanted = "http.request || http.response"
    shown = shown_of(version, conversation, wanted, *fields, options=EACH_STAGE)
    assert sorted(shown) == sorted(
        [f"{stage}\tGET\t" for stage in STAGES] + [f"{stage}\t\t200" for stage in STAGES]
    )


@both
def test_tshark_puts_the_response_together_from_one_stage(conversation: Path, version: str) -> None:
    for stage in ("ip", "ethernet", "lance"):
        path = conversation.with_name(f"{stage}-{version}.pcapng")
        tshark(version, conversation, "-Y", f'frame.interface_name == "{stage}"', "-w", str(path))
        shown = shown_of(version, path, "http.response", "http.response.code", REASSEMBLED)
        assert shown == [f"200\t{len(RESPONSE)}"]
        assert shown_of(version, path, "tcp.analysis.flags") == []


def test_tshark_tells_the_stages_apart(conversation: Path) -> None:
    """By interface, the combined capture is five conversations and no retransmission."""
    fields = ("frame.interface_name", "http.request.method", "http.response.code", REASSEMBLED)
    wanted = "http.request || http.response"
    shown = shown_of("testing", conversation, wanted, *fields, options=BY_INTERFACE)
    assert sorted(shown) == sorted(
        [f"{stage}\tGET\t\t" for stage in STAGES]
        + [f"{stage}\t\t200\t{len(RESPONSE)}" for stage in STAGES]
    )
    assert shown_of("testing", conversation, "tcp.analysis.flags", options=BY_INTERFACE) == []
    assert shown_of("testing", conversation, "tcp.analysis.flags") != []  # so this is the reason
