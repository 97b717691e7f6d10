"""What the tests of the host's side share: a network with a guest in memory, and a host's peer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from slirp.config_fields import ENDPOINTS
from slirp.host import endpoints, tcp_flow, uring
from slirp.host.tcp_flow import peek_offset_works
from tests.kit.guest import Lab
from tests.kit.need import missing

MakeLab = Callable[..., Lab]


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """Labs that are closed at the end, and leave no claim and no descriptor open."""
    before = open_fds()
    labs: list[Lab] = []

    def make(*args: Any, **options: Any) -> Lab:
        labs.append(Lab(*args, **options))
        return labs[-1]

    yield make
    for lab in labs:
        lab.close()
        assert not any(guest.port.open_claims for guest in lab.guests), "a claim was left open"
    assert open_fds() <= before, "a descriptor was left open"


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return make_lab()


@pytest.fixture(params=ENDPOINTS)
def every_endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Labs whose sockets are received from in each of the ways that there are."""
    name: str = request.param
    if name == endpoints.URING and (reason := uring.why_not()):
        missing(reason)
    monkeypatch.setattr(Lab, "endpoint", name)
    return name


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket on the host's loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        sock.settimeout(5)
        yield sock


@pytest.fixture(params=["SO_PEEK_OFF", "discard"])
def peeking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to look at what a host sent: TCP has a peek offset since Linux 6.9."""
    if request.param == "discard":
        monkeypatch.setattr(tcp_flow, "peek_offset_works", lambda family: False)
    elif not peek_offset_works(socket.AF_INET):
        pytest.skip("this kernel has no SO_PEEK_OFF for TCP (Linux 6.9)")


def open_fds() -> set[int]:
    """The descriptors of this process."""
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in found if os.path.exists(f"/proc/self/fd/{fd}")}  # not the listing's own
