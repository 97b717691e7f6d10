"""The two blocks through which board and program speak."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import ConfigError
from slirp.guest import board, prom
from slirp.guest.prom import PARAMETERS, RESULT, Parameters, Result, StaticAddress

PROM_H = (Path(board.__file__).parent / "firmware" / "prom.h").read_text()
MAIN_C = (Path(board.__file__).parent / "firmware" / "main.c").read_text()


def test_layout_is_the_headers() -> None:
    sizes = dict(re.findall(r"sizeof\(struct (\w+)\) == (\d+)", PROM_H))
    assert sizes == {"parameters": str(PARAMETERS.size), "result": str(RESULT.size)}
    assert f"PROM_VERSION = {prom.VERSION}," in PROM_H
    assert prom.PARAMETERS_ADDR + PARAMETERS.size <= prom.RESULT_ADDR
    assert prom.RESULT_ADDR + RESULT.size <= board.ENTRY


def test_statuses_are_the_headers() -> None:
    constants = re.findall(r"^    STATUS_(\w+)[ ,]", PROM_H, re.MULTILINE)
    assert len(constants) == len(prom.STATUSES)
    table = re.search(r"STATUS_NAMES\[\] = {(.*?)}", MAIN_C, re.DOTALL)
    assert table is not None
    assert tuple(re.findall(r'"([a-z-]+)"', table[1])) == prom.STATUSES


def test_parameters_as_the_program_reads_them() -> None:
    parameters = Parameters(
        url="http://x/", connect_host="y", rx_entries=32, tx_entries=1, seed=7, serve_for=1.5
    )
    fields = PARAMETERS.unpack(parameters.pack(8 << 20))
    assert fields[:6] == (prom.MAGIC, prom.VERSION, 8 << 20, 7, parameters.mac, 0)
    assert fields[6:14] == (5, 0, 1544, 1, 1 << 17, 2, 3, 1500)
    assert fields[14:20] == (0, 0, 0, 0, 0, 0)
    assert [text.rstrip(b"\0") for text in fields[21:]] == [b"y", b"http://x/"]


def test_static_address() -> None:
    static = StaticAddress("10.0.0.9", router="10.0.0.1", dns="10.0.0.2", mtu=900)
    fields = PARAMETERS.unpack(Parameters(static=static).pack(1))
    assert fields[14:19] == (0x0A000009, 0xFFFFFF00, 0x0A000001, 0x0A000002, 900)


def test_a_disk_is_asked_for() -> None:
    assert PARAMETERS.unpack(Parameters(disk=True).pack(1))[19:21] == (1, 0)
    assert PARAMETERS.unpack(Parameters(ipv6=True).pack(1))[19:21] == (0, 1)


def test_seeds_differ() -> None:
    assert len({Parameters().pack(1) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"rx_entries": 0},
        {"rx_entries": 129},
        {"tx_entries": 3},
        {"rx_buffer": 63},
        {"rx_buffer": 66},
        {"rx_buffer": 4100},
        {"bswp": 2},
        {"window": 1023},
        {"window": (1 << 18) + 1},
        {"ack_every": 0},
        {"pings": -1},
        {"serve_for": -1.0},
        {"mac": b"\x01\0\0\0\0\0"},
        {"mac": b"\x02"},
        {"url": "http://x/" + "y" * 1024},
        {"url": "http://x/\0"},
        {"connect_host": "ü"},
        {"static": StaticAddress("10.0.0.300")},
        {"static": StaticAddress("10.0.0.3", mtu=9000)},
        {"seed": 1 << 32},
        {"seed": -1},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Parameters(**wrong).pack(8 << 20)


@given(st.binary(min_size=RESULT.size, max_size=RESULT.size))
def test_any_result_block_can_be_read(block: bytes) -> None:
    """The guest may write there what it likes."""
    result = Result.unpack(block)
    assert result.ok == (result.status == "ok")
    assert set(result.counters) == set(prom.COUNTERS)
