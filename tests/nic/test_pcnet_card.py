from __future__ import annotations

from dma.memory import GuestMemory
from nic import pci, pcnet_csr
from nic.pcnet_card import CONFIG_REGION, PcnetCard
from tests.kit.pcnet import MAC


def a_card() -> PcnetCard:
    return PcnetCard(GuestMemory(1 << 20), lambda level: None, mac=MAC)


def csr(card: PcnetCard, number: int, value: int | None = None) -> int:
    card.write(0, 0x12, number.to_bytes(2, "little"))
    if value is not None:
        card.write(0, 0x10, value.to_bytes(2, "little"))
    return int.from_bytes(card.read(0, 0x10, 2), "little")


def test_both_windows_lead_to_the_same_registers() -> None:
    card = a_card()
    assert card.read(0, 0, 4) == card.read(1, 0, 4) == MAC[:4]
    card.write(1, 0x12, b"\x58\0")
    assert card.read(0, 0x12, 2) == b"\x58\0"


def test_which_accesses_a_bus_can_make() -> None:
    card = a_card()
    assert card.takes(0, 0x10, 2)
    assert card.takes(1, 0x1C, 4)
    assert card.takes(CONFIG_REGION, 0, 256)
    for region, offset, size in (
        *((0, 0x11, 2), (0, 0x10, 3), (0, 0x10, 8), (0, 0x10, 0), (0, 0x20, 1)),
        *((2, 0, 4), (6, 0, 4), (8, 0, 1), (CONFIG_REGION, 255, 2), (CONFIG_REGION, 1 << 40, 1)),
    ):
        assert not card.takes(region, offset, size)


def test_a_function_that_may_not_be_master_aborts() -> None:
    card = a_card()
    csr(card, 0, 1)
    assert csr(card, 0) & 0x0104 == 0x0004
    assert csr(card, 5) & pcnet_csr.SINT
    status = int.from_bytes(card.read(CONFIG_REGION, pci.STATUS, 2), "little")
    assert status & pci.MASTER_ABORT
    card.write(CONFIG_REGION, pci.COMMAND, b"\x05\0")
    csr(card, 0, 1)
    assert csr(card, 0) & 0x0100  # IDON


def test_reset_is_the_slots() -> None:
    card = a_card()
    card.write(CONFIG_REGION, pci.COMMAND, b"\x05\0")
    csr(card, 0, 3)
    card.reset()
    assert card.read(CONFIG_REGION, pci.COMMAND, 2) == b"\0\0"
    assert csr(card, 0) == 4
