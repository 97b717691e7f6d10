"""Cloud Hypervisor's and crosvm's front-ends (tests/kit/vmms.py), and a driver like Linux's."""

from __future__ import annotations

import socket
import struct

import pytest

from nic.vhost_user.messages import CONFIG, Request
from nic.vhost_user.port import VhostUserPort
from nic.virtio.features import GUEST_ANNOUNCE, MAC, MQ, OFFERED
from tests.kit.vmms import CTRL_VQ, CloudHypervisor, Crosvm, is_acceptable
from tests.nic.vhost_user.test_port import FRAME, Wire, wired

MONITORS = (CloudHypervisor, Crosvm)


def check_both_ways(wire: Wire) -> None:
    front = wire.front
    front.transmit.send(FRAME)
    wire.turn()
    assert wire.sent.pop() == FRAME
    assert [used.length for used in front.transmit.used()] == [0]
    front.receive.post(2000)
    front.receive.kick()
    wire.turn()
    assert wire.give(FRAME)
    assert [frame for _, frame in front.receive.collect()] == [FRAME]


@pytest.mark.parametrize("kind", MONITORS)
def test_frames_cross_and_the_device_may_be_reset(kind: type[CloudHypervisor | Crosvm]) -> None:
    """First firmware, which takes little, then Linux, which takes all that it is offered."""
    with wired(started=False) as wire:
        monitor = kind(wire.front)
        monitor.begin()
        assert is_acceptable(monitor.offered)
        for features in (1 << 32, monitor.offered & ~CTRL_VQ, monitor.offered & ~CTRL_VQ):
            monitor.activate(features & ~MAC if kind is CloudHypervisor else features)
            check_both_ways(wire)
            monitor.reset()
        assert wire.gone == []
        monitor.front.sock.close()
        wire.turn()
        assert wire.gone == ["closed its connection"]


@pytest.mark.parametrize("frames", [0, 3, 300])
def test_cloud_hypervisor_comes_back_to_a_new_start(frames: int) -> None:
    """The buffers that the guest had made available by then are there still."""
    with wired(started=False) as wire:
        monitor = CloudHypervisor(wire.front)
        monitor.begin()
        monitor.activate(monitor.offered & ~CTRL_VQ)
        front = wire.front
        for _ in range(20):
            front.receive.post(2000)
        for _ in range(frames):
            check_both_ways(wire)
        wire.port.close()
        front.sock.close()
        ours, theirs = socket.socketpair()
        wire.port = VhostUserPort(ours, on_gone=wire.gone.append)
        monitor.reconnect(theirs)
        for _ in range(20):
            assert wire.give(FRAME)
        assert [frame for _, frame in front.receive.collect()] == [FRAME] * 20
        check_both_ways(wire)
        assert wire.gone == []


def test_crosvm_reads_the_configuration_from_here() -> None:
    with wired(started=False) as wire:
        monitor = Crosvm(wire.front)
        monitor.begin()
        assert monitor.read_config(0, 12) == bytes(6) + struct.pack("<HHH", 1, 1, 1500)
        assert monitor.read_config(10, 2) == struct.pack("<H", 1500)
        assert monitor.read_config(200, 56) == bytes(56)
        beyond = wire.front.ask(Request.GET_CONFIG, CONFIG.pack(200, 57, 1) + bytes(57))
        assert CONFIG.unpack(beyond) == (200, 0, 1)
        wire.front.send(Request.SET_CONFIG, CONFIG.pack(0, 6, 0) + bytes(6))
        wire.turn()
        assert wire.gone == []


def test_who_has_a_control_queue_may_have_several_pairs() -> None:
    """QEMU asks for the features first, and serves the control queue itself."""
    with wired(started=False) as wire:
        needing = MQ | GUEST_ANNOUNCE
        assert wire.front.ask_number(Request.GET_FEATURES) & needing == needing
        wire.front.send(Request.SET_OWNER)
        assert wire.front.ask_number(Request.GET_FEATURES) & OFFERED == OFFERED


def test_what_was_not_offered_may_not_be_taken() -> None:
    with wired(started=False) as wire:
        CloudHypervisor(wire.front).begin()
        wire.front.send(Request.SET_FEATURES, struct.pack("=Q", MQ))
        wire.turn()
        assert wire.gone == ["took features that were not offered: 0x400000"]


@pytest.mark.parametrize("payload", [b"", bytes(11), CONFIG.pack(0xFFFFFFFF, 0xFFFFFFFF, 0)])
def test_configuration_that_nobody_has(payload: bytes) -> None:
    with wired(started=False) as wire:
        wire.front.send(Request.GET_CONFIG, payload)
        wire.turn()
        if len(payload) < CONFIG.size:
            assert wire.gone == [f"sent request 24 with {len(payload)} bytes"]
        else:
            assert wire.front.reply() == (Request.GET_CONFIG, CONFIG.pack(0xFFFFFFFF, 0, 0))
