"""Virtual machines that share their memory: Debian's kernel over vhost-user, in every dress.

What QEMU's device is told not to offer makes other drivers of the one: without mergeable buffers,
without any offload, legacy, packed rings.
"""

from __future__ import annotations

import json
import re
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from slirp.sight.layout import check, frames
from slirp.sight.pcapng import read_packets
from tests.kit.ports import free_port
from tests.kit.qemu import Machine, need_kernel
from tests.kit.web import WebServer
from tests.qemu.test_machines import (
    CONTENT,
    MTU_1500,
    check_everything,
    listening,
    script_for,
)

pytestmark = pytest.mark.xdist_group("qemu")

PLAIN = "mrg_rxbuf=off,csum=off,guest_csum=off,gso=off,event_idx=off,indirect_desc=off"
DRESSES = {
    "Linux": ("testing", ""),
    "an older QEMU": ("installed", "vectors=0"),
    "no mergeable buffers": ("testing", "mrg_rxbuf=off"),
    "no offloads": ("testing", PLAIN),
    "legacy": ("testing", "disable-modern=on,disable-legacy=off"),
    "legacy without mergeable buffers": (
        "testing", "disable-modern=on,disable-legacy=off,mrg_rxbuf=off",
    ),
    "packed": ("testing", "packed=on"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    need_kernel()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def vhost_user(path: Path) -> str:
    return f"vhost-user,path={path}"


@pytest.mark.parametrize(("qemu", "device"), DRESSES.values(), ids=DRESSES)
def test_a_machine_over_vhost_user(tmp_path: Path, web: WebServer, qemu: str, device: str) -> None:
    path, port = tmp_path / "net", free_port()
    with listening("--stats", "--forward", f"tcp:{port}-80", "--vhost-user", str(path)) as server:
        netdev = vhost_user(path)
        with Machine(
            tmp_path / "m", script_for(web.port), netdev, qemu=qemu, device=device
        ) as machine:
            check_everything(machine, web, port)
        server.expect("machine 1 closed its connection")
        assert server.end() == 0
    assert not path.exists()
    stats = json.loads(server.said.partition("\n{")[2].join(("{", "")))
    assert stats["malformed"] == {}
    assert stats["tcp"]["octets_copied"] == 0


def test_it_is_captured_at_every_stage(tmp_path: Path, web: WebServer) -> None:
    path, capture, port = tmp_path / "net", tmp_path / "all.pcapng", free_port()
    options = ("--forward", f"tcp:{port}-80", "--capture", str(capture))
    with listening(*options, "--vhost-user", str(path)) as server:
        netdev = vhost_user(path)
        with Machine(tmp_path / "m", script_for(web.port), netdev, qemu="testing") as machine:
            check_everything(machine, web, port)
        assert server.end() == 0
    largest: dict[str, int] = defaultdict(int)
    with capture.open("rb") as file:
        for frame in frames(read_packets(file)):
            assert check(frame) is None
            for one in frame.seen:
                largest[one.vector.stage] = max(largest[one.vector.stage], len(one.data))
    assert set(largest) == {"ip", "ethernet", "virtio", "memory"}
    assert largest["virtio"] > 30 * MTU_1500  # one frame that is many


@pytest.mark.parametrize("device", ["", "packed=on"], ids=["split", "packed"])
def test_a_machine_survives_a_new_start_of_ours(tmp_path: Path, device: str) -> None:
    path = tmp_path / "net"
    script = """
ping -c 1 -W 5 10.0.2.2 > /dev/null && echo there
while ping -c 1 -W 1 10.0.2.2 > /dev/null; do :; done; echo gone
until ping -c 1 -W 1 10.0.2.2 > /dev/null; do :; done; echo there again
"""
    netdev = f"{vhost_user(path)},reconnect-ms=100"
    with ExitStack() as stack:
        first = stack.enter_context(listening("--vhost-user", str(path)))
        machine = stack.enter_context(
            Machine(tmp_path / "m", script, netdev, qemu="testing", device=device)
        )
        machine.expect("there\n")
        assert first.end() == 0
        machine.expect("gone\n")
        stack.enter_context(listening("--vhost-user", str(path)))
        assert "there again" in machine.finish()


@pytest.mark.parametrize("device", ["", "packed=on"], ids=["split", "packed"])
def test_a_machine_migrates_while_it_receives(tmp_path: Path, web: WebServer, device: str) -> None:
    """Pages that are received while they are copied are in the log, or the files would be wrong."""
    path, monitor, incoming = (tmp_path / name for name in ("net", "monitor", "incoming"))
    script = f"""
cd /tmp; n=0
while [ $n -lt 24 ]; do
    n=$((n + 1))
    timeout 4 wget -q -O new http://10.0.2.2:{web.port}/ && mv new file$((n % 3))
    echo round $n; cat file* | wc -c; for file in file*; do sha256sum $file; done
done
"""
    with ExitStack() as stack:
        server = stack.enter_context(listening("--vhost-user", str(path)))
        start = partial(
            Machine, script=script, netdev=vhost_user(path), qemu="testing", device=device
        )
        extra = ("-monitor", f"unix:{monitor},server=on,wait=off")
        first = stack.enter_context(start(tmp_path / "a", extra=extra))
        second = stack.enter_context(start(tmp_path / "b", extra=("-incoming", f"unix:{incoming}")))
        first.expect("round 3\n")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(monitor))
            sock.sendall(b"migrate_set_parameter max-bandwidth 2M\n")
            sock.sendall(f"migrate -d unix:{incoming}\n".encode())
            first.expect("round 6\n")  # it goes on while it is copied
            sock.sendall(b"migrate_set_parameter max-bandwidth 1G\n")
            output = second.expect("round 10\n")
        server.expect("machine 2 connected")
    digests = re.findall(r"([0-9a-f]{64})  file", output)
    assert set(digests) == {web.digest}
    assert len(digests) > 10


def test_a_machine_that_boots_twice(tmp_path: Path) -> None:
    path = tmp_path / "net"
    with listening("--vhost-user", str(path)) as server:
        for attempt in ("a", "b"):
            script = "ping -c 1 10.0.2.2 | grep received"
            with Machine(tmp_path / attempt, script, vhost_user(path), qemu="testing") as one:
                output = one.finish()
            assert "1 packets received" in output
        server.expect("machine 2 closed its connection")


def test_two_machines_of_different_kinds_reach_each_other(tmp_path: Path, web: WebServer) -> None:
    """Super-frames of the one are cut for the other."""
    shared, stream = tmp_path / "shared", tmp_path / "stream"
    a, b = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
    leases = ("--lease", f"{a}=10.0.2.20", "--lease", f"{b}=10.0.2.21")
    first = f"wget -q -O /www/data http://10.0.2.2:{web.port}/; httpd -p 80 -h /www; echo serving; "
    second = """
timeout 20 wget -q -O /www/data http://10.0.2.20/data; sha256sum /www/data
httpd -p 80 -h /www; echo serving; sleep 600
"""
    with listening(*leases, "--vhost-user", str(shared), f"unix:{stream}") as server:
        with Machine(
            tmp_path / "a",
            first + "sleep 8; timeout 20 wget -q -O- http://10.0.2.21/data | sha256sum",
            vhost_user(shared),
            mac=a,
            qemu="testing",
        ) as one:
            one.expect("serving")
            netdev = f"stream,id=n0,addr.type=unix,addr.path={stream}"
            with Machine(tmp_path / "b", second, netdev, mac=b) as other:
                assert web.digest in other.expect("serving")
                assert web.digest in one.finish()
        assert server.end() == 0


def test_several_queue_pairs(tmp_path: Path, web: WebServer) -> None:
    path = tmp_path / "net"
    script = f"""
for n in 1 2 3 4; do wget -q -O- http://10.0.2.2:{web.port}/ | sha256sum & done; wait
grep -c virtio0-output /proc/interrupts
"""
    with listening("--vhost-user", str(path)):
        netdev = f"{vhost_user(path)},queues=2"
        with Machine(
            tmp_path / "m", script, netdev, qemu="testing", device="mq=on", cpus=2
        ) as machine:
            output = machine.finish()
    assert output.count(web.digest) == 4
    assert re.search(r"^2$", output, re.MULTILINE)


def test_a_link_that_goes_down_and_up(tmp_path: Path, web: WebServer) -> None:
    path = tmp_path / "net"
    script = f"""
for n in 1 2 3; do ip link set eth0 down; ip link set eth0 up; done
ip route add default via 10.0.2.2
wget -q -O- http://10.0.2.2:{web.port}/ | sha256sum
"""
    with (
        listening("--vhost-user", str(path)),
        Machine(tmp_path / "m", script, vhost_user(path), qemu="testing") as machine,
    ):
        assert web.digest in machine.finish()
