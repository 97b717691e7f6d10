from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nic import csr
from nic.csr import Registers


def started() -> Registers:
    """After INIT, IDON acknowledged, STRT."""
    registers = Registers()
    assert registers.write_csr0(csr.INIT) == csr.INIT
    registers.raise_status(csr.IDON)
    registers.write_csr0(csr.IDON)
    assert registers.write_csr0(csr.INEA | csr.STRT) == csr.STRT
    registers.raise_status(csr.RXON | csr.TXON)
    return registers


def test_reset_values() -> None:
    registers = Registers()
    assert (registers.csr0, registers.csr3, registers.rap) == (0x0004, 0, 0)


def test_stop_wins_over_init_and_strt() -> None:
    registers = Registers()
    assert registers.write_csr0(0x0007) == csr.STOP
    assert registers.csr0 == 0x0004


def test_init_idon_strt() -> None:
    registers = Registers()
    registers.write_csr0(csr.INIT)
    registers.raise_status(csr.IDON)
    assert registers.csr0 == 0x0181
    registers.write_csr0(0x0100)
    assert registers.csr0 == 0x0001
    registers.write_csr0(0x0042)
    registers.raise_status(csr.RXON | csr.TXON)
    assert registers.csr0 == 0x0073


def test_netbsd_starts_and_acknowledges_in_one_write() -> None:
    registers = Registers()
    registers.write_csr0(csr.INIT)
    registers.raise_status(csr.IDON)
    assert registers.write_csr0(0x0142) == csr.STRT
    assert registers.csr0 == 0x0043


def test_miss_alone() -> None:
    registers = started()
    registers.raise_status(csr.MISS)
    assert registers.csr0 & 0x9080 == 0x9080


def test_cerr_alone_is_an_error_but_no_interrupt() -> None:
    registers = started()
    registers.raise_status(csr.CERR)
    assert registers.csr0 & csr.ERR
    assert not registers.csr0 & csr.INTR


@pytest.mark.parametrize("bit", [csr.BABL, csr.MISS, csr.MERR, csr.RINT, csr.TINT, csr.IDON])
def test_every_event_interrupts_and_one_clears_it(bit: int) -> None:
    registers = started()
    registers.raise_status(bit)
    assert registers.csr0 & (bit | csr.INTR) == bit | csr.INTR
    registers.write_csr0(csr.INEA | csr.WRITE_1_TO_CLEAR & ~bit)
    assert registers.csr0 & bit
    registers.write_csr0(csr.INEA | bit)
    assert registers.csr0 == started().csr0


def test_writing_err_or_intr_clears_nothing() -> None:
    registers = started()
    registers.raise_status(csr.MISS)
    registers.write_csr0(csr.ERR | csr.INTR | csr.INEA)
    assert registers.csr0 & 0x9080 == 0x9080


def test_inea_is_plain() -> None:
    registers = started()
    registers.write_csr0(0)
    assert not registers.csr0 & csr.INEA
    registers.write_csr0(csr.INEA)
    assert registers.csr0 & csr.INEA


def test_inea_cannot_be_set_while_stopped_but_with_init() -> None:
    registers = Registers()
    registers.write_csr0(csr.INEA)
    assert registers.csr0 == csr.STOP
    registers.write_csr0(csr.INEA | csr.INIT)
    assert registers.csr0 == csr.INEA | csr.INIT


def test_tdmd_needs_txon() -> None:
    registers = started()
    assert registers.write_csr0(csr.INEA | csr.TDMD) == csr.TDMD
    assert registers.csr0 & csr.TDMD
    registers.clear(csr.TXON | csr.TDMD)
    assert registers.write_csr0(csr.INEA | csr.TDMD) == 0
    assert not registers.csr0 & csr.TDMD


def test_init_and_strt_take_effect_once() -> None:
    registers = started()
    before = registers.csr0
    assert registers.write_csr0(csr.INIT | csr.STRT | csr.INEA) == 0
    assert registers.csr0 == before


def test_stop_clears_csr0_and_csr3_and_keeps_the_address() -> None:
    registers = Registers()
    for rap, value in ((1, 0x1234), (2, 0x0056), (3, 0x0007)):
        registers.rap = rap
        registers.write_address(value)
    assert registers.csr3 == 7
    registers.write_csr0(csr.STOP)
    assert registers.csr3 == 0
    assert registers.init_block_addr == 0x561234


def test_the_address_can_be_written_only_while_stopped() -> None:
    registers = started()
    for rap in (1, 2, 3):
        registers.rap = rap
        registers.write_address(0xFFFF)
    assert (registers.csr1, registers.csr2, registers.csr3) == (0, 0, 0)


def test_what_the_address_registers_hold() -> None:
    registers = Registers()
    for rap, expected in ((1, 0xFFFE), (2, 0xFFFF), (3, 0x0007)):
        registers.rap = rap
        registers.write_address(0xFFFF)
        assert registers.read() == expected
    assert registers.init_block_addr == 0xFFFFFE


def test_reset_clears_rap_too() -> None:
    registers = started()
    registers.rap = 3
    registers.reset()
    assert (registers.rap, registers.csr0) == (0, csr.STOP)


def test_the_line_is_told_of_changes_only() -> None:
    levels: list[bool] = []
    registers = Registers(levels.append)
    registers.write_csr0(csr.INIT)
    registers.raise_status(csr.IDON)
    assert levels == []  # INTR without INEA
    registers.write_csr0(csr.STRT | csr.INEA)
    assert levels == [True]  # IDON was still there
    registers.raise_status(csr.RINT)
    registers.raise_status(csr.TINT)
    assert levels == [True]
    registers.write_csr0(csr.INTR | csr.TINT | csr.RINT)  # as sunlance does: INEA drops
    assert levels == [True, False]
    registers.write_csr0(csr.INEA)
    assert levels == [True, False, True]  # IDON still is
    registers.write_csr0(csr.STOP)
    assert levels == [True, False, True, False]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 0xFFFF)), max_size=30))
def test_derived_bits_and_the_line_follow(steps: list[tuple[bool, int]]) -> None:
    levels = [False]
    registers = Registers(levels.append)
    for is_write, value in steps:
        if is_write:
            registers.write_csr0(value)
        else:
            registers.raise_status(value & csr.WRITE_1_TO_CLEAR)
        csr0 = registers.csr0
        assert bool(csr0 & csr.ERR) == bool(csr0 & csr.ERR_CAUSES)
        assert bool(csr0 & csr.INTR) == bool(csr0 & csr.INTR_CAUSES)
        assert levels[-1] == (csr0 & 0xC0 == 0xC0)
        assert not csr0 & csr.STOP or not csr0 & (csr.INIT | csr.STRT | csr.INEA)
    assert all(a != b for a, b in itertools.pairwise(levels))
