"""Where numbers begin: growing for who comes again, unguessable for everybody else."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.initial import SECRET_LEN, TICKS, InitialNumbers
from slirp.tcp.seq import MASK, distance

SECRET = bytes(range(SECRET_LEN))
HOSTS = bytes([10, 0, 2, 15, 192, 0, 2, 1])
PORTS = bytes([0x9C, 0x40, 0, 80])


@given(st.floats(0, 1e8), st.floats(4e-6, 8000))
def test_a_connection_s_iss_grows_by_a_tick_every_4_microseconds(now: float, later: float) -> None:
    numbers = InitialNumbers(SECRET)
    grown = distance(numbers.iss(HOSTS + PORTS, now + later), numbers.iss(HOSTS + PORTS, now))
    assert abs(grown - int(later * TICKS)) <= 2
    assert grown >= 0


def test_every_pair_of_ends_begins_elsewhere() -> None:
    numbers = InitialNumbers(SECRET)
    keys = [HOSTS + port.to_bytes(2) + b"\0P" for port in range(1000)]
    assert len({numbers.iss(key, 1.0) for key in keys}) > 990


def test_all_connections_of_two_hosts_read_one_clock() -> None:
    numbers = InitialNumbers(SECRET)
    offsets = {numbers.ts_offset(HOSTS + port.to_bytes(2) + b"\0P") for port in range(100)}
    assert len(offsets) == 1
    assert numbers.ts_offset(HOSTS[::-1] + PORTS) not in offsets
    v6 = bytes(32)
    assert numbers.ts_offset(v6 + PORTS) == numbers.ts_offset(v6 + PORTS[::-1])


def test_nobody_can_tell_without_the_secret() -> None:
    ours, others = InitialNumbers(SECRET), InitialNumbers(SECRET[::-1])
    assert ours.iss(HOSTS + PORTS, 1.0) != others.iss(HOSTS + PORTS, 1.0)
    assert ours.ts_offset(HOSTS + PORTS) != others.ts_offset(HOSTS + PORTS)
    known = (ours.iss(HOSTS + PORTS, 1.0) - ours.ts_offset(HOSTS + PORTS)) & MASK
    assert known not in (0, TICKS)  # one does not tell the other


def test_the_hash_is_blake2s() -> None:
    """By its name in hashlib, which is what is used where the short way does not exist."""
    numbers = InitialNumbers(SECRET)
    digest = hashlib.blake2s(HOSTS + PORTS, key=SECRET, digest_size=4, person=b"isn").digest()
    assert numbers.iss(HOSTS + PORTS, 0.0) == int.from_bytes(digest)


WITHOUT = "import hashlib; sys.modules['_blake2'] = None;"


@pytest.mark.parametrize("before", ["", WITHOUT], ids=["CPython's", "hashlib's"])
def test_no_openssl_is_loaded_for_it_where_there_is_a_shorter_way(before: str) -> None:
    program = (
        f"import sys; {before} from slirp.tcp.initial import InitialNumbers;"
        "print(InitialNumbers(bytes(32)).iss(bytes(12), 0.0), '_hashlib' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert answer == [str(InitialNumbers(bytes(32)).iss(bytes(12), 0.0)), str(bool(before))]
