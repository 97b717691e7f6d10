"""A PCI card of ours under drivers that nobody here wrote: Linux's pcnet32 and iPXE's.

Debian's kernel (the one for all machines: the one for clouds lacks the driver) in QEMU of Debian
testing gets the card by vfio-user. What its driver reads from registers is compared with QEMU's own
model of the chip, in the same machine at the same time.
"""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from slirp.sight.layout import check, frames
from slirp.sight.pcapng import read_packets
from tests.kit.namespace import ROOT
from tests.kit.pcnet_machine import MEMORY, booting, card, machine
from tests.kit.qemu import GENERIC, PCNET_MODULES, make_initramfs, need_kernel
from tests.kit.web import WebServer
from tests.qemu.test_machines import listening

pytestmark = pytest.mark.xdist_group("qemu")  # one machine's emulation fills a core

CONTENT = random.Random(9).randbytes(20_000_000)
UPLOAD = 15_000_000  # bytes of it that come back, as 20 MB of base64
MULTICAST = "01005e0000fb"  # 224.0.0.251
EXPLAINED: Final = {
    # what reads otherwise than in QEMU: docs/pcnet.md says why
    *("CSR0", "CSR4", "CSR24", "CSR25", "CSR30", "CSR31", "CSR59"),
    *(f"CSR{number}" for number in range(26, 30)),
    *(f"CSR{number}" for number in range(34, 46)),
    *("CSR60", "CSR61", "CSR62", "CSR63", "CSR72", "CSR74", "CSR76", "CSR78", "BCR19"),
}
OWN_BY_NATURE: Final = {
    # the address, what multicast follows from it, and where the driver has put its block
    *("PROM0", "PROM1", "PROM2", "PROM6", "CSR1", "CSR2", "CSR12", "CSR13", "CSR14"),
    *("CSR16", "CSR17", "CSR8", "CSR9", "CSR10", "CSR11"),
}


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    need_kernel(GENERIC)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def run(folder: Path, script: str, *options: str) -> tuple[str, dict[str, dict[str, int]]]:
    """What a machine prints that runs `script`, and what the network counted."""
    path = folder / "card"
    with listening(*options, "--stats", "--vfio-user", str(path)) as server:
        with machine(folder, *card(path), *booting(folder, script)) as running:
            output = running.finish()
        server.expect("machine 1 closed its connection")
        assert server.end() == 0
    return output, json.loads(server.said.splitlines()[-1])


def test_a_kernels_driver(tmp_path: Path, web: WebServer) -> None:
    """Lease, ping, 20 MB each way."""
    script = f"""
ping -c 2 -W 5 10.0.2.2 | grep received
wget -q -O /tmp/data http://10.0.2.2:{web.port}/; sha256sum /tmp/data
head -c {UPLOAD} /tmp/data | base64 > /tmp/text
wget -q -O- --post-file=/tmp/text http://10.0.2.2:{web.port}/ && echo sent
dmesg | grep -E "pcnet32.*(registered|link)"
"""
    output, stats = run(tmp_path, script)
    assert "lease 10.0.2.15" in output
    assert "2 packets received" in output
    assert web.digest in output
    assert "sent\n" in output
    assert [base64.b64decode(text) == CONTENT[:UPLOAD] for text in web.posted] == [True]
    assert "registered as PCnet/PCI II 79C970A" in output
    assert "link up" in output
    assert stats["tcp"]["octets_to_guest"] > len(CONTENT)
    assert stats["tcp"]["octets_copied"] == 0
    assert stats["malformed"] == {}


def test_what_else_a_driver_does(tmp_path: Path, web: WebServer) -> None:
    """Down and up, rings of four, promiscuous, multicast, the driver's own loopback test."""
    look = "ping -c 2 -W 5 10.0.2.2 | grep received"
    script = f"""
ip link set eth0 down; ip link set eth0 up; ip route add default via 10.0.2.2
echo after down and up: $({look})
ethtool -G eth0 rx 4 tx 4; ethtool -g eth0 | grep -E '^(RX|TX):' | tail -2
wget -q -O /tmp/data http://10.0.2.2:{web.port}/; echo small rings: $(sha256sum /tmp/data)
ethtool -G eth0 rx 512 tx 512
wget -q -O /tmp/data http://10.0.2.2:{web.port}/; echo large rings: $(sha256sum /tmp/data)
ip link set eth0 promisc on; echo promiscuous: $({look})
ip link set eth0 promisc off; echo no more: $({look})
ip maddr add 33:33:00:00:00:fb dev eth0 2>&1; ip maddr show eth0 | grep 33:33
echo multicast: $({look})
ethtool -t eth0 | head -1; echo tested: $({look})
ethtool eth0 | grep Link
tail -1 /proc/net/dev
"""
    output, stats = run(tmp_path, script)
    for where in ("after down and up", "promiscuous", "no more", "multicast", "tested"):
        assert f"{where}: 2 packets transmitted, 2 packets received" in output, where
    assert output.count("\t4\n") == 2
    assert f"small rings: {web.digest}" in output
    assert f"large rings: {web.digest}" in output
    assert "The test result is PASS" in output
    assert "Link detected: yes" in output
    assert re.search(r"eth0:\s*\d+\s+\d+\s+0\s", output)  # bytes, packets, no errors
    assert stats["tcp"]["octets_copied"] == 0


def test_ipxe(tmp_path: Path) -> None:
    """iPXE's driver, from the card's ROM, fetches a kernel; then Linux's driver has the card."""
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "m").mkdir()
    shutil.copy(need_kernel(GENERIC).image, folder / "linux")
    script = "echo booted; ip -4 addr show eth0"
    archive = make_initramfs(tmp_path / "m", script, PCNET_MODULES, GENERIC)
    archive.rename(folder / "initramfs")
    (folder / "boot.ipxe").write_text(
        "#!ipxe\nifstat\nkernel linux console=ttyS0 quiet panic=-1\ninitrd initramfs\nboot\n"
    )
    path = tmp_path / "card"
    options = ("--tftp", str(folder), "--bootfile", "boot.ipxe", "--stats")
    with listening(*options, "--vfio-user", str(path)) as server:
        rom = card(path, romfile="pxe-pcnet.rom", bootindex=0)
        with machine(tmp_path, *rom, "-boot", "n") as running:
            output = running.finish()
        assert server.end() == 0
    assert "using pcnet32 on 0000:00:01.0" in output
    assert "Link:up" in output
    assert "booted\n" in output
    assert "inet 10.0.2.15/24" in output
    assert json.loads(server.said.splitlines()[-1])["tftp"]["finished"] == 3


def test_registers_beside_qemus_own_card(tmp_path: Path) -> None:
    """Each register that Linux reads differently from the two is explained in docs/pcnet.md."""
    dump = "ethtool -d $card raw on | od -An -v -tx2 -w2"
    script = f"""
ip link set eth1 up; udhcpc -f -i eth1 -s /dhcp -n -q -t 10 -T 1 > /dev/null 2>&1
for card in eth0 eth1; do
  [ $(cat /sys/class/net/$card/address) = 52:54:00:70:63:00 ] && name=ours || name=qemu
  ip link set $card up; ping -c 2 -W 2 -I $card 10.0.2.2 > /dev/null
  echo "running $name" $({dump}); ip link set $card down; echo "stopped $name" $({dump})
done
"""
    path, stream = tmp_path / "card", tmp_path / "stream"
    with listening("--vfio-user", str(path), f"unix:{stream}") as server:
        other = (
            *("-netdev", f"stream,id=n1,addr.type=unix,addr.path={stream}"),
            *("-device", "pcnet,netdev=n1,romfile="),
        )
        with machine(tmp_path, *card(path), *other, *booting(tmp_path, script)) as running:
            output = running.finish()
        assert server.end() == 0
    for state in ("running", "stopped"):
        ours, theirs = (registers(output, f"{state} {name}") for name in ("ours", "qemu"))
        differ = {name for name in ours if ours[name] != theirs[name]}
        shown = {name: (hex(ours[name]), hex(theirs[name])) for name in sorted(differ)}
        sys.stdout.write(f"{state}, ours and QEMU's: {shown}\n")
        assert differ <= EXPLAINED | OWN_BY_NATURE, differ - EXPLAINED - OWN_BY_NATURE
    page = (ROOT / "docs/pcnet.md").read_text()
    for name in EXPLAINED:
        assert re.search(rf"\b{name}\b", page), f"{name} is not explained"


def registers(output: str, heading: str) -> dict[str, int]:
    """ethtool's dump: the PROM, CSR0 to 89, CSR112 and 114, BCR0 to 35."""
    (line,) = re.findall(rf"^{heading} (.*)$", output, re.MULTILINE)
    names = [f"PROM{number}" for number in range(8)]
    names += [f"CSR{number}" for number in (*range(90), 112, 114)]
    names += [f"BCR{number}" for number in range(36)]
    return dict(zip(names, (int(word, 16) for word in line.split()), strict=True))


def test_captured_stage_by_stage(tmp_path: Path, web: WebServer) -> None:
    capture = tmp_path / "out.pcapng"
    script = f"wget -q -O- http://10.0.2.2:{web.port}/ | head -c 2000000 | wc -c"
    run(tmp_path, script, "--capture", str(capture))
    with capture.open("rb") as file:
        found = list(frames(read_packets(file)))
    assert [one for one in map(check, found) if one is not None] == []
    stages = {tuple(seen.vector.stage for seen in frame.seen) for frame in found}
    assert ("ip", "ethernet", "pcnet", "memory") in stages
    payloads = [
        address
        for frame in found
        for seen in frame.seen
        if seen.vector.stage == "memory"
        for name, address, _ in seen.vector.segments
        if name == "payload"
    ]
    assert len(payloads) > 1000
    assert all(address is not None and address < MEMORY << 20 for address in payloads)
