"""The ESP's registers: FIFO, counter, interrupt, what reading clears."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dma.scsi import registers as reg
from dma.scsi.registers import EspRegisters


def test_at_reset() -> None:
    registers = EspRegisters()
    assert [registers.read(offset, 0) for offset in range(16)] == [0] * 14 + [reg.CHIP_ID, 0]


def test_the_fifo_is_sixteen_deep() -> None:
    registers = EspRegisters()
    for octet in range(17):
        registers.write(reg.FIFO, octet)
    assert registers.read(reg.FIFO_FLAGS, 0) == 16
    assert registers.read(reg.STATUS, 0) == reg.GROSS_ERROR
    assert [registers.read(reg.FIFO, 0) for _ in range(17)] == [*range(16), 0]


def test_the_count_is_a_latch_until_it_is_loaded() -> None:
    registers = EspRegisters()
    registers.write(reg.TCLOW, 0x34)
    registers.write(reg.TCMID, 0x12)
    assert (registers.read(reg.TCLOW, 0), registers.read(reg.TCMID, 0)) == (0, 0)
    registers.load_counter()
    assert (registers.read(reg.TCLOW, 0), registers.read(reg.TCMID, 0)) == (0x34, 0x12)


def test_zero_is_the_most() -> None:
    registers = EspRegisters()
    registers.load_counter()
    assert registers.counter == 65536
    registers.write(reg.CONFIG2, reg.CONFIG2_FENAB)
    registers.load_counter()
    assert registers.counter == 1 << 24


def test_the_third_octet_counts_with_fenab_and_hides_the_id() -> None:
    registers = EspRegisters()
    registers.write(reg.TCHIGH, 2)
    registers.load_counter()
    assert registers.counter == 65536, "without FENAB"
    registers.write(reg.CONFIG2, reg.CONFIG2_FENAB)
    registers.load_counter()
    assert (registers.counter, registers.read(reg.TCHIGH, 0)) == (0x20000, 2)


def test_terminal_count_stays_until_the_counter_is_loaded() -> None:
    registers = EspRegisters()
    registers.write(reg.TCLOW, 3)
    registers.load_counter()
    registers.count_down(2)
    assert not registers.read(reg.STATUS, 0) & reg.TC
    registers.count_down(1)
    registers.raise_interrupt(reg.BUS_SERVICE)
    registers.acknowledge()
    assert registers.read(reg.STATUS, 3) == reg.TC | 3
    registers.load_counter()
    assert not registers.read(reg.STATUS, 0) & reg.TC


def test_interrupts_add_up_and_one_reading_clears_them() -> None:
    levels: list[bool] = []
    registers = EspRegisters(levels.append)
    registers.raise_interrupt(reg.BUS_SERVICE, 4)
    registers.raise_interrupt(reg.ILLEGAL, 1)
    registers.errors |= reg.GROSS_ERROR
    assert registers.read(reg.STATUS, 0) == reg.INT | reg.GROSS_ERROR
    assert registers.read(reg.INTERRUPT, 0) == reg.BUS_SERVICE | reg.ILLEGAL
    assert (registers.read(reg.STEP, 0), registers.read(reg.FIFO_FLAGS, 0)) == (1, 1 << 5)
    registers.acknowledge()
    assert [registers.read(n, 0) for n in (reg.STATUS, reg.INTERRUPT, reg.STEP)] == [0, 0, 0]
    assert levels == [True, False]


def test_how_linux_tells_the_chips_apart() -> None:
    registers = EspRegisters()
    registers.write(reg.CONFIG2, 0x0A)
    registers.write(reg.CONFIG3, 5)
    assert (registers.read(reg.CONFIG2, 0), registers.read(reg.CONFIG3, 0)) == (0x0A, 5)


def test_a_reset_keeps_the_initiators_id() -> None:
    registers = EspRegisters()
    registers.write(reg.CONFIG1, 0xFF)
    registers.write(reg.CONFIG2, 0xFF)
    registers.reset()
    assert (registers.read(reg.CONFIG1, 0), registers.read(reg.CONFIG2, 0)) == (7, 0)


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 255))))
def test_any_writes_read_back_as_octets(writes: list[tuple[int, int]]) -> None:
    registers = EspRegisters()
    for offset, value in writes:
        registers.write(offset, value)
        registers.load_counter()
        assert all(0 <= registers.read(n, 7) <= 0xFF for n in range(16))
        assert len(registers.fifo) <= reg.FIFO_LEN
