"""A machine with Debian's kernel that configures its IPv6 by what the network advertises.

Nobody in the machine does anything for it: the kernel solicits a router, makes an address of its
MAC, and takes the route. The guest's own programs judge: ip, ping, wget.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.kit.need import need_ipv6
from tests.kit.ports import free_port
from tests.kit.qemu import Machine, need_kernel
from tests.kit.web import WebServer
from tests.qemu.test_machines import CONTENT, fetch, listening

pytestmark = pytest.mark.xdist_group("qemu")  # one machine's emulation fills a core

MADE = "fd00::5054:ff:fe12:3456"  # RFC 4291, appendix A, of the kit's MAC


def script(port: int) -> str:
    return f"""
for second in 1 2 3 4 5 6 7 8 9 10 11 12; do
  ip -6 route | grep -q '^default' && ip -6 addr | grep 'scope global' | grep -qv tentative && break
  sleep 1
done
ip -6 addr show dev eth0
ip -6 route
ping -6 -c 1 -W 5 fd00::2 | grep received
wget -q -O /www/data 'http://[fd00::2]:{port}/'; sha256sum /www/data
wget -q -O- 'http://[64:ff9b::192.0.2.1]/' || echo no way there
httpd -p '[::]:80' -h /www -c /dev/null
echo serving
wget -q -O- http://10.0.2.2:{port}/wait > /dev/null
"""


def test_a_machine_that_is_told_nothing_but_what_is_advertised(tmp_path: Path) -> None:
    need_kernel()
    need_ipv6()
    path, port = tmp_path / "net", free_port()
    options = ("--nat64", "on", "--forward", f"127.0.0.1:{port}:[{MADE}]:80")
    with WebServer(CONTENT) as web, listening(*options, f"unix:{path}") as server:
        netdev = f"stream,id=n0,addr.type=unix,addr.path={path}"
        with Machine(tmp_path / "m", script(web.port), netdev) as machine:
            machine.expect("serving")
            assert hashlib.sha256(fetch(port)).hexdigest() == web.digest
            web.release()
            said = machine.finish()
        assert server.end() == 0
    assert f"inet6 {MADE}/64 scope global dynamic" in said, said
    assert "default via fe80::2 dev eth0" in said, said
    assert "1 packets received" in said
    assert web.digest in said
