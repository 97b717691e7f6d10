"""Settings that hold for every test.

Two kinds of judge: a person at a desk, whose Hypothesis runs explore, and continuous integration,
whose verdict should be about the change: there the examples are derived from the test alone.
Neither has a deadline per example, since the machine is shared.

Every file of tests is asked at its end whether a process is left of it, and fails if there is one.

scapy looks for the station that a packet would be for on the machine's own network, if an Ethernet
header is left without a destination. No test may send anything there, so that is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from scapy.layers import inet6, l2

from tests.kit.family import adopt_orphans, children, leftovers
from tests.kit.need import in_ci

settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True, print_blob=True)
settings.load_profile("ci" if in_ci() else "desk")


def _ask_nobody(*_args: object, **_options: object) -> None:
    raise AssertionError("scapy would ask the machine's network: give Ether its dst")


l2.srp1 = _ask_nobody  # ARP
inet6.neighsol = _ask_nobody


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    adopt_orphans()
    before = children(os.getpid())
    yield
    left = leftovers(before)
    assert left == [], "still running when this file's tests were done"
