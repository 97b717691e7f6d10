"""The ESP as drivers use it: sequences, values, orders, illegal commands, resets at any time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma import espdma
from dma.espdma import D_ADDR, D_BCNT, D_CSR, EN_CNT, EN_DMA, EN_NEXT, INT_EN, TCI_DIS, WRITE
from dma.iovec import PhysAddr
from dma.scsi import esp as chip
from dma.scsi import registers as reg
from dma.scsi.disk import Disk
from dma.scsi.registers import DMA
from dma.scsi.target import Target
from tests.kit.scsi import (
    COMMAND_BLOCK,
    DVMA,
    PAGE_LEN,
    PAGES,
    MemoryImage,
    ScsiMachine,
    cdb_6,
    cdb_10,
)

SELECTED = reg.BUS_SERVICE | reg.FUNCTION_COMPLETE
DATA_OUT, DATA_IN, COMMAND, STATUS, MESSAGE_OUT, MESSAGE_IN = 0, 1, 2, 3, 6, 7
READY = bytes(6)
SDTR = bytes((1, 3, 1, 25, 15))


def pattern(blocks: int) -> bytes:
    return b"".join((i + 1).to_bytes(2, "big") * 256 for i in range(blocks))


@pytest.fixture
def machine() -> Iterator[ScsiMachine]:
    m = ScsiMachine()
    m.image.data[:] = pattern(64)
    m.ready()
    yield m
    m.close()


# A command, from selection to bus free


def test_a_read(machine: ScsiMachine) -> None:
    outcome = machine.run(cdb_10(0x28, 2, 4), into=2048)
    assert outcome.interrupts == [
        (SELECTED, 4, DATA_IN),
        (reg.BUS_SERVICE, 0, STATUS),
        (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN),
        (reg.DISCONNECTED, 0, 0),
    ]
    assert (outcome.status, outcome.residue) == (0, 0)
    assert outcome.data == pattern(6)[1024:]
    assert machine.esp.copied_bytes == machine.disk.copied_bytes == 0


def test_a_write(machine: ScsiMachine) -> None:
    outcome = machine.run(cdb_6(0x0A, 9, 2), out=b"w" * 1024)
    assert outcome.interrupts[:2] == [(SELECTED, 4, DATA_OUT), (reg.BUS_SERVICE, 0, STATUS)]
    assert machine.image.data == pattern(9) + b"w" * 1024 + pattern(64)[11 * 512 :]


def test_without_data_the_selection_ends_in_status(machine: ScsiMachine) -> None:
    outcome = machine.run(READY)
    assert outcome.interrupts[0] == (SELECTED, 4, STATUS)
    assert outcome.status == 0


def test_nobody_answers(machine: ScsiMachine) -> None:
    for target in (1, 6, 7):
        outcome = machine.run(READY, target=target)
        assert outcome.interrupts == [(reg.DISCONNECTED, 0, 0)]
    assert machine.run(READY).status == 0


def test_a_second_target() -> None:
    images = {n: MemoryImage(bytes((n,)) * 1024) for n in (0, 5)}
    machine = ScsiMachine({n: Target(Disk(image)) for n, image in images.items()})
    machine.start()
    for number in (5, 0):
        assert machine.run(READY, target=number).status == 2
        outcome = machine.run(cdb_10(0x28, 0, 2), into=1024, target=number)
        assert outcome.data == bytes((number,)) * 1024
    machine.run(cdb_10(0x2A, 1, 1), out=b"z" * 512, target=5)
    assert images[5].data == b"\5" * 512 + b"z" * 512
    assert images[0].data == bytes(1024)
    machine.close()


def test_a_missing_unit(machine: ScsiMachine) -> None:
    outcome = machine.run(bytes((0x12, 0, 0, 0, 36, 0)), into=36, lun=2)
    assert (outcome.status, outcome.data[0]) == (0, 0x7F)
    assert machine.run(READY, lun=2).status == 2
    assert machine.sense(lun=2) == (5, 0x25, 0)


def test_a_refused_command_moves_nothing(machine: ScsiMachine) -> None:
    outcome = machine.run(cdb_10(0x28, 64, 1), into=512)
    assert outcome.interrupts[0] == (SELECTED, 4, STATUS)
    assert (outcome.status, outcome.residue) == (2, 512)
    assert machine.sense() == (5, 0x21, 0)


# Data phases


@pytest.mark.parametrize("piece", [1000, 512, 4096, 8191])
def test_a_data_phase_in_segments(machine: ScsiMachine, piece: int) -> None:
    """TC and the same phase at the end of each but the last."""
    outcome = machine.run(cdb_10(0x28, 0, 16), into=8192, pieces=piece)
    assert outcome.data == pattern(16)
    assert all(seen == (reg.BUS_SERVICE, 0, DATA_IN) for seen in outcome.interrupts[1:-3])
    assert outcome.interrupts[-3] == (reg.BUS_SERVICE, 0, STATUS)
    machine.run(cdb_10(0x2A, 20, 16), out=pattern(40)[-8192:], pieces=piece)
    assert machine.image.data[20 * 512 : 36 * 512] == pattern(40)[-8192:]


def test_terminal_count_in_mid_phase(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 2))
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 600, WRITE)
    machine.poll()
    assert machine.esp.read(reg.STATUS) == reg.INT | reg.TC | DATA_IN


def test_the_target_has_fewer_octets(machine: ScsiMachine) -> None:
    machine.select(bytes((0x12, 0, 0, 0, 255, 0)))
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 255, WRITE)
    machine.poll()
    assert machine.esp.read(reg.STATUS) == reg.INT | STATUS, "no TC"
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.esp.read(reg.TCLOW) == 255 - 36
    assert machine.espdma.read(D_ADDR) == DVMA + 36


def test_a_bad_block_ends_the_phase_early(machine: ScsiMachine) -> None:
    machine.image.bad_from = 5 * 512 + 3
    outcome = machine.run(cdb_10(0x28, 3, 4), into=2048)
    assert (outcome.status, outcome.residue) == (2, 1024)
    assert outcome.data == pattern(5)[1536:]
    assert machine.sense() == (3, 0x11, 0)


def test_the_count_can_be_65536(machine: ScsiMachine) -> None:
    machine.image = MemoryImage(bytes(256 * 512))
    machine.select(cdb_6(0x08, 0, 64))
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 0, WRITE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.espdma.read(D_ADDR) == DVMA + 64 * 512


def test_the_three_octet_counter(machine: ScsiMachine) -> None:
    machine.esp.write(reg.CONFIG2, reg.CONFIG2_FENAB)
    machine.esp.write(reg.TCHIGH, 0)
    outcome = machine.run(cdb_10(0x28, 0, 16), into=8192)
    assert outcome.data == pattern(16)


# Command and EN_DMA in either order


def netbsd(machine: ScsiMachine, command: int, count: int, direction: int) -> None:
    """Address, direction, count, NOP to load it, command; EN_DMA last."""
    machine.espdma.write(D_ADDR, DVMA)
    machine.espdma.write(D_CSR, INT_EN | direction)
    machine.set_count(count)
    machine.esp.write(reg.COMMAND, DMA | chip.NOP)
    machine.esp.write(reg.COMMAND, DMA | command)


def test_the_command_waits_for_the_channel(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 2))
    netbsd(machine, chip.TRANSFER_INFORMATION, 1024, WRITE)
    machine.poll()
    assert not machine.esp.read(reg.STATUS) & reg.INT
    assert machine.load(DVMA, 1024) == bytes(1024)
    machine.espdma.write(D_CSR, INT_EN | WRITE | EN_DMA)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.load(DVMA, 1024) == pattern(2)


def test_a_selection_waits_for_the_channel(machine: ScsiMachine) -> None:
    machine.store(DVMA, b"\x80" + READY)
    machine.esp.write(reg.BUS_ID, 0)
    netbsd(machine, chip.SELECT_ATN, 7, 0)
    machine.poll()
    assert not machine.esp.read(reg.STATUS) & reg.INT
    machine.espdma.write(D_CSR, INT_EN | EN_DMA)
    assert machine.interrupt() == (SELECTED, 4, STATUS)


def test_the_wrong_direction_moves_nothing(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 2))
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 1024, 0)
    machine.poll()
    assert not machine.esp.read(reg.STATUS) & reg.INT
    machine.espdma.write(D_CSR, INT_EN | WRITE | EN_DMA)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)


def test_nothing_happens_inside_the_register_write(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 2))
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 1024, WRITE)
    assert not machine.esp.read(reg.STATUS) & (reg.INT | reg.TC)
    assert machine.espdma.read(D_ADDR) == DVMA
    assert machine.esp.queue.pending == 1


def test_a_chain_of_addresses(machine: ScsiMachine) -> None:
    """One command, three counts of the channel."""
    machine.select(cdb_10(0x28, 0, 4))
    csr = WRITE | EN_DMA | EN_CNT | EN_NEXT | TCI_DIS
    machine.espdma.write(D_BCNT, 512)
    machine.espdma.write(D_ADDR, DVMA)
    machine.espdma.write(D_CSR, csr)
    machine.espdma.write(D_BCNT, 1024)
    machine.espdma.write(D_ADDR, DVMA + 3 * PAGE_LEN)
    machine.set_count(2048)
    machine.esp.write(reg.COMMAND, DMA | chip.TRANSFER_INFORMATION)
    machine.poll()
    assert not machine.esp.read(reg.STATUS) & reg.INT, "the chain ran dry"
    assert machine.espdma.read(D_CSR) & espdma.TC
    machine.espdma.write(D_BCNT, 512)
    machine.espdma.write(D_ADDR, DVMA + 0x100)
    machine.espdma.write(D_CSR, csr | espdma.TC)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.load(DVMA + 3 * PAGE_LEN, 1024) == pattern(3)[512:]
    assert machine.load(DVMA + 0x100, 512) == pattern(4)[1536:]
    assert machine.load(DVMA, 256) == pattern(1)[:256]


# Faults


def test_a_fault_leaves_the_command_hanging_until_reset(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 16))
    machine.map(1, 0x4000, flags=0)
    machine.iommu.write(0x14, 0)  # flush
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 8192, WRITE)
    machine.poll()
    assert machine.espdma.read(D_CSR) & espdma.ERR_PEND
    assert not machine.esp.read(reg.STATUS) & reg.INT
    assert machine.memory.read(PhysAddr(PAGES[0]), 4096) == bytes(4096)
    assert machine.levels[-1], "the channel interrupts"
    machine.ready()
    assert machine.run(cdb_10(0x28, 0, 8), into=4096).data == pattern(8)


def test_after_a_fault_the_page_may_come_and_the_transfer_go_on(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 16))
    machine.map(1, 0x4000, flags=0)
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 8192, WRITE)
    machine.iommu.write(0x14, 0)
    machine.map(1, 0x4000)
    machine.espdma.write(D_CSR, INT_EN | WRITE | EN_DMA | espdma.INVALIDATE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.load(DVMA, 8192) == pattern(16)


def test_a_command_block_that_is_not_mapped(machine: ScsiMachine) -> None:
    machine.esp.write(reg.BUS_ID, 0)
    machine.dma_command(chip.SELECT_ATN, DVMA + 0x40000, 11, 0)
    machine.poll()
    assert machine.espdma.read(D_CSR) & espdma.ERR_PEND
    assert machine.esp.queue.pending == 0
    machine.ready()


# Without DMA


def test_selection_from_the_fifo(machine: ScsiMachine) -> None:
    machine.esp.write(reg.BUS_ID, 0)
    for octet in b"\x80" + READY:
        machine.esp.write(reg.FIFO, octet)
    machine.esp.write(reg.COMMAND, chip.SELECT_ATN)
    assert not machine.esp.read(reg.STATUS) & reg.INT, "from the loop"
    assert machine.interrupt() == (SELECTED, 4, STATUS)
    assert machine.esp.read(reg.FIFO_FLAGS) == 0


def test_selection_without_atn_takes_the_unit_from_the_command(machine: ScsiMachine) -> None:
    for octet in bytes((0x00, 1 << 5, 0, 0, 0, 0)):
        machine.esp.write(reg.FIFO, octet)
    machine.esp.write(reg.COMMAND, chip.SELECT)
    assert machine.interrupt() == (SELECTED, 4, STATUS)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    machine.interrupt()
    assert machine.esp.read(reg.FIFO) == 2, "unit 1 is not there"


def test_octet_by_octet_inwards(machine: ScsiMachine) -> None:
    machine.select(bytes((0x12, 0, 0, 0, 5, 0)))
    came = []
    for index in range(5):
        machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
        phase = DATA_IN if index < 4 else STATUS
        assert machine.interrupt() == (reg.BUS_SERVICE, 0, phase)
        assert machine.esp.read(reg.FIFO_FLAGS) & 0x1F == 1
        came.append(machine.esp.read(reg.FIFO))
    assert bytes(came) == bytes((0, 0, 2, 2, 31))
    assert machine.esp.copied_bytes == 5


def test_sixteen_octets_at_a_time_outwards(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x2A, 0, 1))
    data = bytes(range(256)) * 2
    for index in range(0, 512, 16):
        for octet in data[index : index + 16]:
            machine.esp.write(reg.FIFO, octet)
        machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
        seen = machine.interrupt()
    assert seen == (reg.BUS_SERVICE, 0, STATUS)
    assert machine.image.data[:512] == data
    assert machine.esp.copied_bytes == 512


def test_status_by_transfer_information(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_IN)
    assert machine.esp.read(reg.FIFO) == 0
    machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)
    assert machine.esp.read(reg.FIFO) == 0
    machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
    assert machine.interrupt() == (reg.DISCONNECTED, 0, 0)


def test_status_first_and_the_message_by_command_complete(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
    machine.interrupt()
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)


def test_status_and_message_by_dma(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.store(DVMA, b"\xee\xee\xee")
    machine.dma_command(chip.COMMAND_COMPLETE, DVMA, 2, WRITE)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)
    assert machine.load(DVMA, 3) == b"\0\0\xee"
    assert machine.esp.read(reg.STATUS) & reg.TC


def test_one_octet_by_dma(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.store(DVMA, b"\xee\xee")
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 5, WRITE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_IN)
    assert machine.load(DVMA, 2) == b"\0\xee"


def test_command_complete_in_another_phase(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 1))
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, DATA_IN)


# Pad


@pytest.mark.parametrize("opcode", [0x28, 0x2A])
def test_transfer_pad(machine: ScsiMachine, opcode: int) -> None:
    """NetBSD pads when the target wants more than there is; a count of 0 is enough for all."""
    before = bytes(machine.image.data)
    machine.select(cdb_10(opcode, 1, 3))
    machine.set_count(0)
    machine.esp.write(reg.COMMAND, DMA | chip.NOP)
    machine.esp.write(reg.COMMAND, DMA | chip.TRANSFER_PAD)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)
    padded = before[:512] + bytes(1536) + before[2048:]
    assert machine.image.data == (before if opcode == 0x28 else padded)
    assert machine.load(DVMA, 512) == bytes(512)


def test_transfer_pad_in_a_phase_without_data(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.set_count(5)
    machine.esp.write(reg.COMMAND, DMA | chip.TRANSFER_PAD)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)


# Messages


def select_and_stop(machine: ScsiMachine) -> None:
    """As Linux does when it wants to negotiate: IDENTIFY only."""
    machine.store(COMMAND_BLOCK, b"\x80")
    machine.esp.write(reg.BUS_ID, 0)
    machine.dma_command(chip.SELECT_ATN_STOP, COMMAND_BLOCK, 1, 0)
    assert machine.interrupt() == (SELECTED, 1, MESSAGE_OUT)
    machine.dma_off()


def say(machine: ScsiMachine, octets: bytes) -> tuple[int, int, int]:
    for octet in octets:
        machine.esp.write(reg.FIFO, octet)
    machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
    return machine.interrupt()


def hear(machine: ScsiMachine) -> tuple[bytes, tuple[int, int, int]]:
    """The message, and the interrupt after its last byte was accepted."""
    heard = bytearray()
    seen = (0, 0, MESSAGE_IN)
    while seen[2] == MESSAGE_IN and len(heard) < 8:
        machine.esp.write(reg.COMMAND, chip.TRANSFER_INFORMATION)
        assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)
        heard.append(machine.esp.read(reg.FIFO))
        machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
        seen = machine.interrupt()
    return bytes(heard), seen


def test_a_negotiation_ends_asynchronous(machine: ScsiMachine) -> None:
    select_and_stop(machine)
    assert say(machine, SDTR) == (reg.BUS_SERVICE, 0, MESSAGE_IN)
    assert hear(machine) == (SDTR[:4] + b"\0", (reg.BUS_SERVICE, 0, COMMAND))
    machine.store(COMMAND_BLOCK, cdb_10(0x28, 0, 1))
    machine.dma_command(chip.TRANSFER_INFORMATION, COMMAND_BLOCK, 10, 0)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, DATA_IN)


def test_messages_by_dma(machine: ScsiMachine) -> None:
    select_and_stop(machine)
    machine.store(COMMAND_BLOCK, SDTR)
    machine.dma_command(chip.TRANSFER_INFORMATION, COMMAND_BLOCK, len(SDTR), 0)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_IN)


@pytest.mark.parametrize(
    "message", [b"\x20\x01", b"\x01\x02\x03\x01", b"\x0e", b"\x01", b"\x01\x03"]
)
def test_what_the_target_does_not_understand_it_rejects(
    machine: ScsiMachine, message: bytes
) -> None:
    select_and_stop(machine)
    assert say(machine, message) == (reg.BUS_SERVICE, 0, MESSAGE_IN)
    assert hear(machine) == (b"\x07", (reg.BUS_SERVICE, 0, COMMAND))


@pytest.mark.parametrize("message", [b"\x08", b"\x07", b"\xc3", b"\x05\x09"])
def test_messages_that_need_no_answer(machine: ScsiMachine, message: bytes) -> None:
    select_and_stop(machine)
    assert say(machine, message) == (reg.BUS_SERVICE, 0, COMMAND)


@pytest.mark.parametrize("message", [b"\x06", b"\x0c"])
def test_abort_and_device_reset_free_the_bus(machine: ScsiMachine, message: bytes) -> None:
    select_and_stop(machine)
    assert say(machine, message) == (reg.DISCONNECTED, 0, 0)
    assert machine.run(READY).status == (2 if message == b"\x0c" else 0)


def test_a_tagged_selection_is_rejected(machine: ScsiMachine) -> None:
    block = b"\x80\x20\x01" + READY
    machine.store(COMMAND_BLOCK, block)
    machine.dma_command(chip.SELECT_ATN3, COMMAND_BLOCK, len(block), 0)
    assert machine.interrupt() == (SELECTED, 2, MESSAGE_IN)
    machine.esp.write(reg.COMMAND, chip.FLUSH_FIFO)
    assert hear(machine) == (b"\x07", (reg.BUS_SERVICE, 0, COMMAND))


def test_atn_is_heard_when_a_message_is_accepted(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    machine.interrupt()
    machine.esp.write(reg.COMMAND, chip.SET_ATN)
    machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_OUT)
    machine.esp.write(reg.COMMAND, chip.FLUSH_FIFO)
    assert say(machine, b"\x08") == (reg.DISCONNECTED, 0, 0)


def test_atn_is_heard_before_the_message(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.SET_ATN)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_OUT)
    assert machine.esp.read(reg.FIFO_FLAGS) & 0x1F == 1, "only the status"
    machine.esp.read(reg.FIFO)
    assert say(machine, b"\x08") == (reg.BUS_SERVICE, 0, MESSAGE_IN)
    assert hear(machine) == (b"\0", (reg.DISCONNECTED, 0, 0))


def test_atn_ends_a_data_phase_and_abort_the_command(machine: ScsiMachine) -> None:
    machine.select(cdb_10(0x28, 0, 4))
    machine.esp.write(reg.COMMAND, chip.SET_ATN)
    machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 512, WRITE)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, MESSAGE_OUT)
    machine.dma_off()
    assert say(machine, b"\x06") == (reg.DISCONNECTED, 0, 0)
    assert machine.run(READY).status == 0


def test_atn_can_be_taken_back(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.SET_ATN)
    machine.esp.write(reg.COMMAND, chip.RESET_ATN)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)


# Selections that come to less


def test_nothing_to_send(machine: ScsiMachine) -> None:
    machine.esp.write(reg.COMMAND, chip.SELECT_ATN)
    assert machine.interrupt() == (SELECTED, 0, MESSAGE_OUT)


@pytest.mark.parametrize(("count", "step"), [(1, 3), (4, 4)])
def test_a_command_that_is_cut_short(machine: ScsiMachine, count: int, step: int) -> None:
    machine.store(COMMAND_BLOCK, b"\x80" + READY)
    machine.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, count, 0)
    assert machine.interrupt() == (SELECTED, step, COMMAND)
    machine.dma_command(chip.TRANSFER_INFORMATION, COMMAND_BLOCK + count, 7 - count, 0)
    assert machine.interrupt() == (reg.BUS_SERVICE, 0, STATUS)


def test_octets_that_the_target_did_not_want(machine: ScsiMachine) -> None:
    machine.store(COMMAND_BLOCK, b"\x80" + READY + b"abc")
    machine.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, 10, 0)
    machine.poll()
    assert machine.esp.read(reg.FIFO_FLAGS) == 3 << 5 | 3
    assert machine.interrupt() == (SELECTED, 3, STATUS)


def test_a_selection_with_a_count_of_65536_fetches_no_more_than_a_fifo(
    machine: ScsiMachine,
) -> None:
    machine.store(COMMAND_BLOCK, b"\x80" + READY)
    machine.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, 0, 0)
    assert machine.interrupt() == (SELECTED, 3, STATUS)
    assert machine.esp.read(reg.FIFO_FLAGS) & 0x1F == 10


# Commands that are illegal, too many, or without effect


@pytest.mark.parametrize("code", [0x10, 0x11, 0x12, 0x18, 0x1A, 0x1B, 0x20, 0x2B, 0x40, 0x7F])
@pytest.mark.parametrize("dma", [0, DMA])
def test_illegal_without_a_connection(machine: ScsiMachine, code: int, dma: int) -> None:
    machine.esp.write(reg.COMMAND, dma | code)
    assert machine.interrupt() == (reg.ILLEGAL, 0, 0)


@pytest.mark.parametrize("code", [0x40, 0x41, 0x42, 0x43, 0x45, 0x46, 0x20, 0x7F])
def test_illegal_while_connected(machine: ScsiMachine, code: int) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, code)
    assert machine.interrupt() == (reg.ILLEGAL, 0, STATUS)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, MESSAGE_IN)


def test_commands_that_do_not_interrupt(machine: ScsiMachine) -> None:
    for code in (chip.NOP, chip.FLUSH_FIFO, chip.ENABLE_SELECTION):
        machine.esp.write(reg.COMMAND, code)
    machine.poll()
    assert machine.esp.read(reg.STATUS) == reg.TC  # of the last command block
    assert machine.esp.read(reg.COMMAND) == chip.ENABLE_SELECTION


def test_disabling_selection_is_complete_at_once(machine: ScsiMachine) -> None:
    machine.esp.write(reg.COMMAND, chip.DISABLE_SELECTION)
    assert machine.interrupt() == (reg.FUNCTION_COMPLETE, 0, 0)


def test_a_second_command_starts_when_the_interrupt_is_read(machine: ScsiMachine) -> None:
    machine.select(READY)
    machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)
    assert machine.esp.read(reg.STATUS) == reg.INT | reg.TC | MESSAGE_IN
    assert machine.esp.read(reg.INTERRUPT) == reg.FUNCTION_COMPLETE
    assert machine.esp.read(reg.INTERRUPT) == reg.DISCONNECTED


def test_a_third_command_is_a_gross_error(machine: ScsiMachine) -> None:
    machine.select(READY)
    for _ in range(3):
        machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    assert machine.esp.read(reg.STATUS) & reg.GROSS_ERROR


# Resets


def halfway(machine: ScsiMachine, point: int) -> None:
    """A read of 8 KiB, up to some point in it."""
    block = b"\x80" + cdb_10(0x28, 0, 16)
    machine.store(COMMAND_BLOCK, block)
    machine.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, len(block), 0)
    if point >= 1:
        machine.interrupt()
        machine.dma_off()
    if point >= 2:
        machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 8192, WRITE)
    if point >= 3:
        machine.poll()
    if point >= 4:
        machine.esp.read(reg.INTERRUPT)
        machine.esp.write(reg.COMMAND, chip.COMMAND_COMPLETE)
    if point >= 5:
        machine.esp.write(reg.COMMAND, chip.MESSAGE_ACCEPTED)


@pytest.mark.parametrize("point", range(6))
@pytest.mark.parametrize("how", ["pin", "chip", "bus"])
def test_a_reset_at_any_point(machine: ScsiMachine, point: int, how: str) -> None:
    halfway(machine, point)
    if how == "pin":
        machine.espdma.write(D_CSR, espdma.RESET)
        machine.espdma.write(D_CSR, INT_EN)
    else:
        machine.esp.write(reg.COMMAND, chip.CHIP_RESET if how == "chip" else chip.BUS_RESET)
    assert machine.esp.queue.pending == 0
    machine.poll()
    if how == "bus":
        assert machine.esp.read(reg.INTERRUPT) & reg.SCSI_RESET
    assert not machine.esp.read(reg.STATUS) & reg.INT
    assert machine.esp.read(reg.STATUS) & reg.PHASE == 0
    if how == "pin":
        assert machine.image.withdrawn >= (1 <= point < 5)
    machine.ready()
    assert machine.run(cdb_10(0x28, 0, 16), into=8192).data == pattern(16)


def test_a_bus_reset_is_a_unit_attention_and_interrupts_unless_told_not_to(
    machine: ScsiMachine,
) -> None:
    machine.esp.write(reg.COMMAND, chip.BUS_RESET)
    assert machine.interrupt() == (reg.SCSI_RESET, 0, 0)
    assert machine.run(READY).status == 2
    assert machine.sense() == (6, 0x29, 0)
    machine.esp.write(reg.CONFIG1, reg.CONFIG1_NO_RESET_INTERRUPT)
    machine.esp.write(reg.COMMAND, chip.BUS_RESET)
    assert not machine.esp.read(reg.STATUS) & reg.INT


def test_after_a_chip_reset_only_nop_is_heard(machine: ScsiMachine) -> None:
    machine.esp.write(reg.COMMAND, chip.CHIP_RESET)
    machine.esp.write(reg.COMMAND, chip.DISABLE_SELECTION)
    assert not machine.esp.read(reg.STATUS) & reg.INT
    machine.esp.write(reg.COMMAND, chip.NOP)
    machine.esp.write(reg.COMMAND, chip.DISABLE_SELECTION)
    assert machine.esp.read(reg.STATUS) & reg.INT


def test_the_interrupt_reaches_the_cpu_through_the_channel(machine: ScsiMachine) -> None:
    machine.levels.clear()
    machine.esp.write(reg.COMMAND, chip.DISABLE_SELECTION)
    assert machine.espdma.read(D_CSR) & espdma.INT_PEND
    machine.esp.read(reg.INTERRUPT)
    assert machine.levels == [True, False]


def test_a_handler_may_reset_the_chip_from_inside_a_completion(machine: ScsiMachine) -> None:
    """TC of the channel interrupts in the middle of the completions."""
    machine.select(cdb_10(0x28, 0, 2))

    def handler(level: bool) -> None:
        if level:
            machine.esp.write(reg.COMMAND, chip.CHIP_RESET)

    machine.espdma.write(D_BCNT, 1024)
    machine.espdma.write(D_CSR, WRITE | EN_DMA | EN_CNT | INT_EN)
    machine.espdma.write(D_ADDR, DVMA)
    machine.set_count(1024)
    machine.esp.write(reg.COMMAND, DMA | chip.TRANSFER_INFORMATION)
    machine.espdma.interrupt = handler
    machine.poll()
    machine.espdma.interrupt = None
    assert not machine.esp.read(reg.STATUS) & (reg.INT | reg.PHASE)
    machine.ready()


# Anything at all

ESP_WRITES = st.tuples(
    st.just("esp"),
    st.integers(0, 15),
    st.integers(0, 255)
    | st.sampled_from([0x00, 0x80, 0x90, 0x10, 0x11, 0x91, 0x12, 0x18, 0x98])
    | st.sampled_from([0x1A, 0x41, 0x42, 0xC1, 0xC2, 0xC3, 0xC6, 0x01, 0x02, 0x03]),
)
COMMANDS = st.tuples(
    st.just("esp"),
    st.just(reg.COMMAND),
    st.sampled_from([0x00, 0x80, 0x90, 0x10, 0x11, 0x91, 0x12, 0x98, 0x1A, 0x42, 0xC2, 0xC3]),
)
CHANNEL_WRITES = st.tuples(
    st.just("espdma"),
    st.sampled_from([D_CSR, D_ADDR, D_BCNT, 0xC]),
    st.integers(0, 0xFFFFFFFF)
    | st.sampled_from([DVMA, DVMA + 4000, COMMAND_BLOCK, EN_DMA, EN_DMA | WRITE])
    | st.sampled_from([EN_DMA | EN_CNT | EN_NEXT, EN_DMA | WRITE | EN_CNT, 0, 7, 512]),
)
READS = st.tuples(st.just("read"), st.integers(0, 15), st.just(0))
POLLS = st.tuples(st.just("poll"), st.just(0), st.just(0))
CDBS = st.sampled_from(
    [
        READY,
        cdb_10(0x28, 0, 16),
        cdb_10(0x2A, 1, 2),
        cdb_10(0x2F, 0, 9, 2),
        cdb_10(0x35, 0, 0),
        bytes((0x12, 0, 0, 0, 255, 0)),
        bytes((3, 0, 0, 0, 18, 0)),
    ]
)
STARTS = st.tuples(st.just("select"), st.integers(0, 2), CDBS)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ESP_WRITES | COMMANDS | CHANNEL_WRITES | READS | POLLS | STARTS, max_size=60),
    st.sampled_from([b"\x80" + READY, b"\x80" + cdb_10(0x28, 0, 16), b"\xc0\x01\x03\x01"]),
)
def test_any_sequence_leaves_the_machine_legal(
    steps: list[tuple[str, int, int | bytes]], block: bytes
) -> None:
    pin: list[bool] = [False]
    machine = ScsiMachine()
    machine.esp._registers._interrupt = pin.append
    machine.store(COMMAND_BLOCK, block)
    machine.store(DVMA, bytes(range(64)))
    outside = [n for n in range(0, 0x14000, PAGE_LEN) if n not in (*PAGES, 0x12000)]
    for what, offset, value in steps:
        match what, value:
            case "esp", int():
                machine.esp.write(offset, value)
            case "espdma", int():
                machine.espdma.write(offset, value)
            case "read", _:
                assert 0 <= machine.esp.read(offset) <= 0xFF
            case "select", bytes():
                machine.store(COMMAND_BLOCK, b"\x80" + value)
                machine.esp.write(reg.BUS_ID, offset)
                machine.dma_command(chip.SELECT_ATN, COMMAND_BLOCK, 1 + len(value), 0)
                machine.poll()
            case _:
                machine.poll()
        check(machine, pin)
    machine.poll()
    check(machine, pin)
    for page in outside:
        assert machine.memory.read(PhysAddr(page), PAGE_LEN) == bytes(PAGE_LEN)
    assert len(machine.image.data) == 64 * 512
    machine.ready()
    assert machine.run(cdb_10(0x28, 0, 2), into=1024).data == machine.image.data[:1024]
    machine.close()


def check(machine: ScsiMachine, pin: list[bool]) -> None:
    status = machine.esp.read(reg.STATUS)
    assert bool(status & reg.INT) == pin[-1]
    assert status & reg.PHASE in (0, 1, 2, 3, 6, 7)
    assert machine.esp.read(reg.FIFO_FLAGS) & 0x1F <= reg.FIFO_LEN
    assert machine.esp.queue.pending <= 2
    assert machine.espdma.read(D_CSR) >> 28 == 0xA
