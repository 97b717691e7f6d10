"""The program that is shipped is the one in the sources, and the rebuilt one works as well."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from slirp.guest import board
from slirp.guest.board import load_firmware
from tests.kit.lan import Lan
from tests.kit.need import need_tool
from tests.slirp.guest.bench import NAMES, Bench

SOURCES = Path(board.__file__).parent / "firmware"
SHIPPED_BY = "sparc64-linux-gnu-gcc (Debian 12.2.0-13) 12.2.0"  # other compilers, other bytes
BODY = bytes(range(256)) * 64


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    need_tool("sparc64-linux-gnu-gcc")
    make = need_tool("make")
    out = tmp_path_factory.mktemp("firmware")
    command = [make, "-C", str(SOURCES), f"OUT={out}", "CFLAGS_EXTRA=-Werror"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return (out / "guest.bin").read_bytes()


def test_rebuilt_program_fetches(rebuilt: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    bench = Bench(Lan(lambda _request: answer, names=NAMES), firmware=rebuilt)
    assert bench.run().sha256 == hashlib.sha256(BODY).hexdigest()


def test_the_same_compiler_builds_the_same_octets(rebuilt: bytes) -> None:
    version = subprocess.run(
        ["sparc64-linux-gnu-gcc", "--version"], capture_output=True, text=True, check=True
    )
    if version.stdout.splitlines()[0] != SHIPPED_BY:
        pytest.skip(f"guest.bin was built by {SHIPPED_BY}")
    assert rebuilt == load_firmware()


@pytest.mark.parametrize("handler", [board.SCSI_HANDLER, board.ETHERNET_HANDLER])
def test_the_trap_table_is_where_the_board_jumps_to(handler: int) -> None:
    """Entries 0x14 and 0x16 of the table: branches, not the zeros between the entries."""
    at = handler - board.ENTRY
    firmware = load_firmware()
    assert firmware[at] & 0xFF == 0x10  # ba
    assert firmware[at + 8 : at + 16] == bytes(8)
