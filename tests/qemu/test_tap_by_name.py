"""Monitors that open a TAP device by name: Firecracker, Cloud Hypervisor, crosvm, libkrun.

A TAP device has one process behind it, so the monitor's is another one than ours; a bridge in the
namespace joins the two. The lines that make it are those of docs/qemu.md. The monitor is QEMU here,
which opens the device as they do: TUNSETIFF with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR on one that is
there, TUNSETVNETHDRSZ, then TUNSETOFFLOAD with what the guest's driver takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.sight.pcapng import read_packets
from tests.kit.namespace import ROOT, SLIRP, as_user
from tests.kit.need import need_tool, need_tun
from tests.kit.ports import free_port
from tests.kit.qemu import MEMORY, Running, command_line
from tests.kit.web import WebServer
from tests.qemu.test_machines import CONTENT, fetch, script_for

pytestmark = pytest.mark.xdist_group("qemu")

BRIDGE = """\
    ip addr flush dev tap0
    ip link add br0 type bridge
    ip tuntap add vm0 mode tap
    for port in tap0 vm0; do ip link set $port master br0 up; done
    ip link set br0 up
"""


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def test_the_lines_are_those_of_the_document() -> None:
    document = (ROOT / "docs/qemu.md").read_text()
    assert "".join(f"    {line}\n" for line in BRIDGE.splitlines()) in document


def test_a_machine_on_a_bridge(tmp_path: Path, web: WebServer) -> None:
    need_tun()
    need_tool("ip")
    (tmp_path / "m").mkdir()
    port, capture = free_port(), tmp_path / "all.pcapng"
    line = command_line(tmp_path / "m", script_for(web.port), MEMORY)
    line += ["-netdev", "tap,id=n0,ifname=vm0,script=no,downscript=no,vhost=off"]
    line += ["-device", "virtio-net-pci,netdev=n0"]
    options = ("--map-root", "--stats", "--capture", str(capture))
    forward = ("--forward", f"{port}:10.0.2.15:80")
    script = f'set -e\n{BRIDGE}\nexec "$@"\n'
    with Running(
        *as_user(), *SLIRP, "run", *options, *forward, "--", "sh", "-c", script, "sh", *line
    ) as machine:
        machine.expect("serving")
        assert hashlib.sha256(fetch(port)).hexdigest() == web.digest
        web.release()
        output = machine.finish()
    assert "lease 10.0.2.15" in output
    assert "2 packets received" in output
    assert web.digest in output
    with capture.open("rb") as file:
        lengths = [len(p.data) for p in read_packets(file) if p.interface.name == "ethernet"]
    assert max(lengths) > 10 * 1514  # large segments cross the bridge whole
