from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.memory import GuestMemory
from nic import csr, pcnet_csr
from nic.engine import DESCRIPTORS_PER_CALL
from nic.filter import logical_address_filter
from nic.pcnet import DRCVBC, DRCVPA, PORTS_LEN, Pcnet, prom_of
from nic.pcnet_memory import ADD_FCS, BAM, LAFM, LTINT, NO_FCS, PAM
from nic.port import Port
from nic.receiver import BUFFERS_MAX as BUFFERS_OF_A_FRAME
from nic.ring import BUFF, ENP, ERR, OWN, STP, TMD3_BUFF, TMD3_LCAR, TMD3_UFLO
from nic.transmitter import BUFFERS_MAX
from tests.kit.pcnet import MAC, OTHER, PcnetChip, frame_of

BUFFERS = 0x10000
FRAME = STP | ENP
PROM, DXMTFCS, LOOP, INTL = 0x8000, 0x0008, 0x0004, 0x0040
GROUP = bytes.fromhex("01005e000001")
EVERY_STYLE = pytest.mark.parametrize("style", range(4))


def started(rx_buffer: int = 1544, **options: object) -> PcnetChip:
    card = PcnetChip(**options)  # type: ignore[arg-type]
    for index in range(1 << card.block.rlen):
        card.give_rx(index, BUFFERS + 0x1000 * index, rx_buffer)
    card.start()
    return card


def sent(card: PcnetChip) -> list[bytes]:
    frames = []
    for frame in card.chip.frames():
        frames.append(bytes(frame.iov))
        frame.release()
    card.poll()
    return frames


def test_it_is_a_port() -> None:
    port: Port = PcnetChip().chip
    assert (port.max_frame, port.offload) == (1514, False)


# Ports


def test_the_address_prom() -> None:
    prom = prom_of(MAC)
    chip = PcnetChip().chip
    assert bytes(chip.read(at, 1) for at in range(16)) == prom
    assert b"".join(chip.read(at, 4).to_bytes(4, "little") for at in range(0, 16, 4)) == prom
    assert prom[:6] == MAC
    assert prom[14:] == b"WW"
    total = sum(prom[:12]) + sum(prom[14:])
    assert int.from_bytes(prom[12:14], "little") == total


def test_the_prom_is_written_only_where_bcr2_lets_it() -> None:
    card = PcnetChip()
    card.chip.write(0, 0xAA, 1)
    assert card.chip.read(0, 1) == MAC[0]
    card.write_bcr(2, 0x0100)
    card.chip.write(0, 0xAA, 1)
    assert card.chip.read(0, 1) == 0xAA
    card.chip.reset()
    assert card.chip.read(0, 1) == MAC[0]


def test_probing_as_linux_does_it() -> None:
    card = PcnetChip()
    card.soft_reset()
    assert card.csr0 == 0x0004
    card.chip.write(0x12, 88, 2)
    assert card.chip.read(0x12, 2) == 88
    assert (card.read_csr(89) << 16 | card.read_csr(88)) >> 12 & 0xFFFF == 0x2621
    address = b"".join(card.read_csr(12 + i).to_bytes(2, "little") for i in range(3))
    assert address == MAC


def test_a_doubleword_write_makes_the_ports_doublewords() -> None:
    card = PcnetChip()
    assert card.chip.read(0x14, 4) == 0xFFFFFFFF
    card.chip.write(0x10, 0, 4)
    assert card.chip.read(0x10, 2) == 0xFFFF  # words are nothing now
    card.width = 4
    assert card.csr0 == 0x0004
    assert card.read_csr(88) == 0x02621003  # all of the identity in one read
    card.soft_reset()
    assert card.csr0 == 0x0004  # still doublewords
    card.chip.reset()
    card.width = 2
    assert card.csr0 == 0x0004


def test_undefined_accesses_read_ones_and_write_nothing() -> None:
    card = PcnetChip()
    assert card.chip.read(0x10, 1) == 0xFF
    assert card.chip.read(0x11, 2) == 0xFFFF
    assert card.chip.read(0x1E, 2) == 0xFFFF
    card.chip.write(0x18, 0x1234, 2)
    card.chip.write(0x13, 0x12, 1)
    assert card.csr0 == 0x0004


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_access_raises(data: st.DataObject) -> None:
    chip = Pcnet(GuestMemory(1 << 20), mac=MAC)
    access = st.tuples(
        st.sampled_from((1, 2, 4)), st.integers(0, PORTS_LEN - 1), st.integers(0, 0xFFFFFFFF)
    )
    for size, offset, value in data.draw(st.lists(access, max_size=40)):
        offset -= offset % size
        chip.write(offset, value & (1 << 8 * size) - 1, size)
        assert 0 <= chip.read(offset, size) < 1 << 8 * size
        for frame in chip.frames():
            frame.release()
        chip.poll(0.0)


# Registers


def test_init_then_strt_as_drivers_do_it() -> None:
    card = PcnetChip()
    card.init()
    assert card.csr0 == 0x0181
    card.csr0 = 0x0042
    assert card.csr0 == 0x01F3
    assert card.levels == [True]


@EVERY_STYLE
def test_init_fills_registers(style: int) -> None:
    card = PcnetChip(style=style, rlen=3, tlen=1, mode=PROM, ladrf=(1, 2, 3, 4))
    card.init()
    assert [card.read_csr(n) for n in range(8, 12)] == [1, 2, 3, 4]
    assert card.read_csr(15) == PROM
    assert (card.read_csr(24), card.read_csr(30)) == (0x2000, 0x6000)
    assert (card.read_csr(76), card.read_csr(78)) == (0xFFF8, 0xFFFE)
    assert card.read_csr(6) == 0x1300


def test_an_event_that_csr3_masks_does_not_interrupt() -> None:
    card = PcnetChip()
    card.write_csr(3, 0x5F00)
    card.start()
    assert card.csr0 & csr.INTR == 0
    assert card.levels == []
    card.csr0 = csr.INEA
    card.write_csr(3, 0)
    assert card.levels == []  # IDON was acknowledged
    assert card.chip.receive(frame_of(60)) is False
    assert card.levels == [True]
    card.write_csr(3, 0x5F00)
    assert card.levels == [True, False]


def test_stop_leaves_csr3_and_mode() -> None:
    card = started(mode=PROM)
    card.write_csr(3, 0x5F00)
    card.csr0 = csr.STOP
    assert card.csr0 == 0x0004
    assert (card.read_csr(3), card.read_csr(15)) == (0x5F00, PROM)
    card.soft_reset()
    assert (card.read_csr(3), card.read_csr(15)) == (0, 0)


def test_most_registers_need_stop_or_suspension() -> None:
    card = started()
    card.write_csr(8, 0x1234)
    assert card.read_csr(8) == 0
    card.suspend()
    assert card.read_csr(5) & pcnet_csr.SPND
    card.write_csr(8, 0x1234)
    assert card.read_csr(8) == 0x1234


def test_events_of_csr4_are_written_1_to_clear() -> None:
    card = PcnetChip()
    assert card.read_csr(4) == 0x0115
    card.csr0 = csr.INEA
    card.write_csr(4, 0x0080 | 0x0115)  # UINTCMD
    assert card.read_csr(4) == 0x0155
    assert card.csr0 & csr.INTR
    assert card.levels == [True]
    card.write_csr(4, 0x0155)
    assert card.levels == [True, False]


def test_software_styles() -> None:
    card = PcnetChip()
    for style, shown in ((0, 0x200), (1, 0x101), (2, 0x302), (3, 0x303), (4, 0x200)):
        card.write_bcr(20, style)
        assert card.read_bcr(20) == shown
        assert card.read_csr(58) == shown
    card.write_csr(58, 3)
    assert card.read_bcr(20) == 0x303


def test_leds_are_written_only_where_bcr2_lets_them() -> None:
    card = PcnetChip()
    assert card.read_bcr(4) == 0x80C0
    card.write_bcr(4, 0x0010)
    assert card.read_bcr(4) == 0x80C0
    card.write_bcr(2, 0x1002)
    card.write_bcr(4, 0x0010)
    assert card.read_bcr(4) == 0x0010
    assert card.read_bcr(5) == 0x0084


def test_the_link() -> None:
    card = started()
    card.chip.set_link(False)
    assert card.read_bcr(4) == 0x00C0
    assert card.chip.claim(60) is None
    card.give_tx(0, 0x9000, frame_of(60))
    assert sent(card) == []
    assert card.tx_status(0) == FRAME | ERR
    assert card.tx_errors(0) == TMD3_LCAR
    card.chip.set_link(True)
    card.give_tx(1, 0x9000, frame_of(60))
    assert sent(card) == [frame_of(60)]


# Frames


@EVERY_STYLE
def test_a_frame_is_received(style: int) -> None:
    card = started(style=style)
    frame = frame_of(200)
    assert card.chip.receive(frame)
    card.poll()
    assert card.get(BUFFERS, 200) == frame
    assert card.get(BUFFERS + 200, 4) == zlib.crc32(frame).to_bytes(4, "little")
    assert card.rx_status(0) == FRAME | (PAM if style else 0)
    assert card.mcnt(0) == 204
    assert card.csr0 & csr.RINT
    assert card.levels[-1] is True


@EVERY_STYLE
def test_a_claim_is_filled_where_the_guest_has_its_buffers(style: int) -> None:
    card = started(style=style)
    claim = card.chip.claim(100, (14, 20))
    assert claim is not None
    assert [len(s) for s in claim.iov] == [14, 20, 66]
    frame = frame_of(100)
    claim.iov.copy_from(frame)
    assert card.get(BUFFERS, 100) == frame
    claim.commit(100)
    card.poll()
    assert card.rx_status(0) == FRAME | (PAM if style else 0)
    assert card.mcnt(0) == 104


@EVERY_STYLE
def test_a_frame_over_several_buffers(style: int) -> None:
    card = started(rx_buffer=64, style=style)
    frame = frame_of(146)
    assert card.chip.receive(frame)
    card.poll()
    assert b"".join(card.get(BUFFERS + 0x1000 * i, 64) for i in range(3))[:146] == frame
    assert card.rx_status(0) == STP
    assert card.rx_status(1) == 0
    assert card.rx_status(2) == ENP | (PAM if style else 0)
    assert card.mcnt(2) == 150


@EVERY_STYLE
def test_frames_are_sent(style: int) -> None:
    card = started(style=style)
    frames = [frame_of(60), frame_of(1514)]
    for index, frame in enumerate(frames):
        card.give_tx(index, 0x9000 + 0x1000 * index, frame)
    card.csr0 = csr.INEA | csr.TDMD
    assert sent(card) == frames
    assert [card.tx_status(i) for i in range(2)] == [FRAME, FRAME]
    assert card.csr0 & csr.TINT


@EVERY_STYLE
def test_a_frame_is_sent_from_several_buffers(style: int) -> None:
    card = started(style=style)
    frame = frame_of(300)
    card.give_tx(0, 0x9000, frame[:100], OWN | STP)
    card.give_tx(1, 0xA000, frame[100:200], OWN)
    card.give_tx(2, 0xB000, frame[200:], OWN | ENP)
    assert sent(card) == [frame]
    assert [card.tx_status(i) for i in range(3)] == [STP, 0, ENP]


def test_short_frames_are_padded_where_csr4_says_so() -> None:
    card = started()
    card.write_csr(4, 0x0915)
    card.give_tx(0, 0x9000, frame_of(42))
    assert sent(card) == [frame_of(42) + bytes(18)]


def with_fcs(frame: bytes) -> bytes:
    return frame + zlib.crc32(frame).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("style", "mode", "bit", "has_fcs"),
    [
        (2, DXMTFCS, 0, True),
        (2, DXMTFCS, ADD_FCS, False),
        (2, 0, ADD_FCS, False),
        (0, DXMTFCS, ADD_FCS, False),
        (1, DXMTFCS, NO_FCS, True),
        (1, 0, NO_FCS, True),
        (1, 0, 0, False),
    ],
)
def test_who_makes_the_fcs(style: int, mode: int, bit: int, has_fcs: bool) -> None:
    card = started(style=style, mode=mode)
    frame = frame_of(100)
    card.give_tx(0, 0x9000, with_fcs(frame) if has_fcs else frame, OWN | FRAME | bit)
    assert sent(card) == [frame]
    assert card.tx_status(0) == FRAME | bit


def test_tint_is_left_out_where_csr5_says_so() -> None:
    card = started()
    card.write_csr(5, pcnet_csr.TOKINTD)
    card.give_tx(0, 0x9000, frame_of(60))
    assert sent(card)
    assert not card.csr0 & csr.TINT
    card.write_csr(5, pcnet_csr.LTINTEN)
    card.give_tx(1, 0x9000, frame_of(60))
    assert sent(card)
    assert not card.csr0 & csr.TINT
    card.give_tx(2, 0x9000, frame_of(60), OWN | FRAME | LTINT)
    assert sent(card)
    assert card.csr0 & csr.TINT
    assert card.tx_status(2) == FRAME


def test_an_underflow_stops_the_transmitter_unless_csr3_forbids_it() -> None:
    card = started()
    card.give_tx(0, 0x9000, frame_of(60), OWN | STP)
    assert sent(card) == []
    assert card.tx_errors(0) == TMD3_BUFF | TMD3_UFLO
    assert not card.csr0 & csr.TXON
    card = started()
    card.write_csr(3, pcnet_csr.DXSUFLO)
    card.give_tx(0, 0x9000, frame_of(60), OWN | STP)
    assert sent(card) == []
    assert card.tx_status(0) == STP | ERR
    assert card.csr0 & csr.TXON
    card.give_tx(1, 0x9000, frame_of(60))
    assert sent(card) == [frame_of(60)]


def test_misses_are_counted() -> None:
    card = PcnetChip()
    card.start()
    for _ in range(3):
        assert not card.chip.receive(frame_of(60))
    assert card.read_csr(112) == 3
    assert card.csr0 & csr.MISS


# Whose a frame is


def test_the_filter_says_why() -> None:
    card = started(rlen=3, ladrf=logical_address_filter([GROUP]))
    for dst in (MAC, GROUP, b"\xff" * 6):
        assert card.chip.receive(frame_of(60, dst))
    assert not card.chip.receive(frame_of(60, OTHER))
    card.poll()
    marks = [card.rx_status(i) & ~0xFF for i in range(3)]
    assert marks == [PAM, LAFM, BAM]


def test_mode_makes_deaf() -> None:
    card = started(mode=DRCVBC | DRCVPA)
    assert not card.chip.receive(frame_of(60, MAC))
    assert not card.chip.receive(frame_of(60, b"\xff" * 6))


def test_the_filter_is_changed_while_suspended() -> None:
    card = started()
    assert not card.chip.receive(frame_of(60, OTHER))
    card.suspend()
    assert card.chip.claim(60) is None
    assert not card.chip.receive(frame_of(60))
    card.write_csr(15, PROM)
    words = logical_address_filter([GROUP])
    for index in range(4):
        card.write_csr(8 + index, words[index])
    card.suspend(False)
    assert card.chip.receive(frame_of(60, OTHER))
    card.suspend()
    card.write_csr(15, 0)
    card.suspend(False)
    assert not card.chip.receive(frame_of(60, OTHER))
    assert card.chip.receive(frame_of(60, GROUP))


def test_nothing_is_sent_while_suspended() -> None:
    card = started()
    card.suspend()
    card.give_tx(0, 0x9000, frame_of(60))
    card.csr0 = csr.TDMD
    assert sent(card) == []
    card.suspend(False)
    assert sent(card) == [frame_of(60)]


def test_what_is_under_way_goes_on_while_suspended() -> None:
    card = started()
    claim = card.chip.claim(60)
    assert claim is not None
    card.suspend()
    claim.iov.copy_from(frame_of(60))
    claim.commit(60)
    card.poll()
    assert card.rx_status(0) == FRAME | PAM


@EVERY_STYLE
def test_loopback(style: int) -> None:
    card = started(style=style, mode=LOOP | INTL)
    card.give_tx(0, 0x9000, frame_of(60))
    assert sent(card) == []
    card.poll()
    assert card.get(BUFFERS, 60) == frame_of(60)
    assert card.rx_status(0) == FRAME | (PAM if style else 0)


# Rings


def test_addresses_of_24_bits_get_csr2s_upper_byte() -> None:
    memory = GuestMemory([(0, 1 << 16), (0x05000000, 1 << 20)])
    card = PcnetChip(style=0, path=memory)
    card.memory = memory
    base = 0x05000000
    card.init()  # the block at 0x1000 is there
    card.put(base + 0x2000, card.descriptor(0x3000, 1544, OWN))
    card.csr0 = csr.STOP
    card.put(base + 0x1000, card.get(0x1000, 24))
    card.write_csr(2, base >> 16)
    card.csr0 = csr.INIT
    card.csr0 = csr.STRT
    assert card.chip.receive(frame_of(60))
    card.poll()
    assert card.get(base + 0x3000, 60) == frame_of(60)


def test_rings_of_any_length_by_registers_without_init() -> None:
    card = PcnetChip()
    card.write_bcr(20, 2)
    for number, value in ((24, 0x2000), (25, 0), (30, 0x6000), (31, 0), (76, -9), (78, -1)):
        card.write_csr(number, value & 0xFFFF)
    for index in range(9):
        card.give_rx(index, BUFFERS + 0x1000 * index, 1544)
    card.csr0 = csr.STRT
    for _ in range(9):
        assert card.chip.receive(frame_of(60))
    assert not card.chip.receive(frame_of(60))
    card.poll()
    card.give_rx(0, BUFFERS, 1544)
    assert card.chip.receive(frame_of(60))


def test_a_chain_of_too_many_buffers_is_an_underflow() -> None:
    card = PcnetChip()
    card.write_bcr(20, 2)
    for number, value in ((30, 0x6000), (31, 0), (76, -1), (78, -600)):
        card.write_csr(number, value & 0xFFFF)
    for index in range(600):
        card.give_tx(index, 0x9000, b"x", OWN | STP if index == 0 else OWN)
    card.csr0 = csr.STRT
    assert sent(card) == []
    assert card.tx_status(BUFFERS_MAX - 1) == ERR
    assert card.tx_status(BUFFERS_MAX) == OWN
    assert card.chip.stats["tx_underflow"] == 1


def long_ring(rx: bytes = b"", tx: bytes = b"") -> PcnetChip:
    """Rings of 65,536 descriptors, all alike."""
    card = PcnetChip(memory=4 << 20)
    card.csr0 = csr.STOP
    card.write_bcr(20, 2)
    for base, length, octets in ((24, 76, rx), (30, 78, tx)):
        card.write_csr(base + 1, 0x10 if base == 24 else 0x20)
        card.write_csr(length, 0)
        card.put(0x100000 if base == 24 else 0x200000, octets * (1 << 16))
    card.csr0 = csr.INEA | csr.STRT
    return card


def test_a_turn_uses_a_bounded_number_of_descriptors() -> None:
    """A ring of the greatest length without a frame in it holds nobody up."""
    card = long_ring(tx=PcnetChip().descriptor(0x8000, 60, OWN))
    for _ in range(3):
        assert list(card.chip.frames()) == []
        card.poll()
        assert card.chip._doorbell.is_set
    given_back = sum(not card.get(0x200000 + 16 * n + 7, 1)[0] & OWN for n in range(8192))
    assert 0 < given_back <= 3 * DESCRIPTORS_PER_CALL


def test_a_frame_that_needs_too_many_buffers_is_buff() -> None:
    card = long_ring(rx=PcnetChip().descriptor(0x8000, 1, OWN))
    assert not card.chip.receive(frame_of(1000))
    card.poll()
    assert card.chip.stats["rx_buff"] == 1
    given_back = [n for n in range(200) if not card.get(0x100000 + 16 * n + 7, 1)[0] & OWN]
    assert given_back == list(range(BUFFERS_OF_A_FRAME))


def test_the_whole_ring_too_small_is_buff() -> None:
    card = started(rx_buffer=32)
    assert not card.chip.receive(frame_of(200))
    card.poll()
    assert card.rx_status(3) & (ERR | BUFF) == ERR | BUFF


def test_a_refused_cycle_stops_the_chip() -> None:
    card = started()
    card.write_csr(5, 0x0400)  # SINTE
    card.give_rx(0, 0xF0000000, 1544)
    assert not card.chip.receive(frame_of(60))
    assert card.csr0 == csr.STOP | csr.INTR
    assert card.read_csr(5) & pcnet_csr.SINT
    assert card.levels[-1] is True
    card.write_csr(5, pcnet_csr.SINT)
    assert card.levels[-1] is False


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_guest_may_write_anything_into_its_rings(data: st.DataObject) -> None:
    card = PcnetChip(style=data.draw(st.integers(0, 3)), memory=1 << 16)
    card.init()
    ring = data.draw(st.binary(min_size=64, max_size=64))
    for base in (0x2000, 0x6000):
        card.put(base, ring)
    card.csr0 = csr.STRT
    for size in (60, 1514):
        claim = card.chip.claim(size)
        if claim is not None:
            claim.iov.copy_from(frame_of(size))
            claim.commit(size)
    sent(card)
    card.chip.receive(frame_of(300))
    card.poll()
