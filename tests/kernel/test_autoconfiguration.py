"""Guests that configure IPv6 themselves: Linux's SLAAC, other people's clients of RA and DHCPv6.

Does not do: machines (tests/qemu).
"""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from slirp import Network
from slirp.host.forward import Forward
from tests.kit.need import need_ipv6, need_tool
from tests.kit.served import DEVICE, DNS6, GATEWAY6, Served, served

FIRST = "fd00::100"  # what the pool begins with
ROUTER = "fe80::2"
PATIENCE = 15.0  # seconds for detection of duplicates, a solicitation, the delay of its answer
SETTINGS = "/proc/sys/net/ipv6/conf"


@pytest.fixture
def bare() -> Iterator[Served]:
    """A guest whose device has no address yet."""
    with served(
        configured=False, domain="slirp.test", search=("slirp.test", "example.org")
    ) as running:
        yield running
        assert not running.stats()["malformed"], "nothing that Linux sends is malformed"


def addresses(guest: Served) -> list[dict[str, Any]]:
    """The device's own of the network's prefix."""
    shown = guest.run("ip", "-6", "-j", "addr", "show", "dev", DEVICE, "scope", "global").stdout
    found = (info for device in json.loads(shown) for info in device.get("addr_info", ()))
    return [info for info in found if "local" in info]


def wait_for(guest: Served, ready: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    give_up_at = time.monotonic() + PATIENCE
    while not ready(found := [a for a in addresses(guest) if not a.get("tentative")]):
        assert time.monotonic() < give_up_at, found
        time.sleep(0.1)  # between looks at what another process does
    return found


def eui64(guest: Served) -> str:
    """RFC 4291, appendix A, of the device's MAC."""
    shown = json.loads(guest.run("ip", "-j", "link", "show", "dev", DEVICE).stdout)
    octets = bytes.fromhex(shown[0]["address"].replace(":", ""))
    octets = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    groups = (f"{int.from_bytes(octets[at : at + 2]):x}" for at in range(0, 8, 2))
    return f"fd00::{':'.join(groups)}"


def restart(guest: Served, **settings: str) -> None:
    """The link goes down and up, with these settings; Linux solicits a router anew."""
    words = [f"echo {value} > {SETTINGS}/{DEVICE}/{name}" for name, value in settings.items()]
    words += [f"ip link set {DEVICE} down", f"ip link set {DEVICE} up"]
    guest.run("sh", "-c", " && ".join(words))


def script(path: Path) -> Path:
    """What a DHCP client runs when something happens: it writes down what it was told."""
    file = path / "script"
    file.write_text(f"#!/bin/sh\nenv | grep -E '^(new_|reason|nd)' >> {path}/told\n")
    file.chmod(0o755)
    return file


def told(path: Path) -> dict[str, str]:
    text = (path / "told").read_text()
    return dict(line.split("=", 1) for line in text.splitlines())


# Router advertisements


def test_linux_makes_an_address_of_its_mac(bare: Served) -> None:
    restart(bare, use_tempaddr="0")
    (found,) = wait_for(bare, lambda found: len(found) == 1)
    assert (found["local"], found["prefixlen"]) == (eui64(bare), 64)
    assert 86000 < found["valid_life_time"] <= 86400
    assert 14000 < found["preferred_life_time"] <= 14400
    (route,) = json.loads(bare.run("ip", "-6", "-j", "route", "show", "default").stdout)
    assert (route["gateway"], route["protocol"]) == (ROUTER, "ra")
    assert bare.run("ping", "-6", "-c", "1", "-W", "5", GATEWAY6).returncode == 0


def test_forwards_reach_the_lasting_address_and_the_private_one(bare: Served) -> None:
    """Both are addresses that the network never gave out; it finds them by asking."""
    need_ipv6()
    restart(bare, use_tempaddr="2")
    found = wait_for(bare, lambda found: len(found) == 2)
    private = next(a["local"] for a in found if a.get("temporary"))
    program = (
        "import socket; s = socket.create_server(('::', 80), family=socket.AF_INET6)\n"
        "print(flush=True)\n"
        "for _ in range(2): s.accept()[0].sendall(b'here')"
    )
    with bare.start("python3", "-c", program, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        for address in (eui64(bare), private):
            forward = bare.call(partial(forward_to, address))
            with socket.create_connection(("::1", forward.host[1]), timeout=PATIENCE) as sock:
                assert sock.recv(4) == b"here"
        server.kill()


def forward_to(address: str, network: Network) -> Forward:
    return network.forward("tcp", host=("::1", 0), guest=(address, 80))


def test_what_linux_reports_of_the_advertisement() -> None:
    """As `ip -6 monitor` sees it: the prefix, and what comes with it."""
    with served(configured=False, mtu=1400) as guest:
        with guest.start("ip", "-6", "monitor", "prefix", stdout=subprocess.PIPE) as monitor:
            restart(guest)
            assert monitor.stdout is not None
            ready, _, _ = select.select([monitor.stdout], [], [], PATIENCE)
            monitor.kill()
            line = monitor.stdout.readline().decode() if ready else ""
        assert re.search(rf"prefix fd00::/64 ?dev {DEVICE} .*valid 86400 preferred 14400", line), (
            line
        )
        wait_for(guest, lambda found: bool(found))
        assert guest.run("cat", f"{SETTINGS}/{DEVICE}/mtu").stdout.strip() == "1400"


def test_rdisc6(bare: Served) -> None:
    """What a router advertises, as another program reads it, and who asks gets an answer."""
    need_tool("rdisc6")
    restart(bare)
    wait_for(bare, lambda found: bool(found))
    said = bare.run("rdisc6", "-1", DEVICE).stdout
    for line in (
        r"Hop limit +: +64 ", r"Stateful address conf\. +: +Yes", r"Stateful other conf\. +: +Yes",
        r"Router lifetime +: +1800 ", r"Prefix +: fd00::/64", r"On-link +: +Yes",
        r"Autonomous address conf\.: +Yes", r"Valid time +: +86400 ", r"Pref\. time +: +14400 ",
        r"MTU +: +1500 bytes \(valid\)", r"Source link-layer address: 52:55:0A:00:02:02",
        rf"Recursive DNS server +: {DNS6}", r"DNS search list +: slirp\.test example\.org",
        r"from fe80::2",
    ):  # fmt: skip
        assert re.search(line, said), (line, said)


@pytest.mark.parametrize("asked", [GATEWAY6, DNS6, ROUTER])
def test_ndisc6(bare: Served, asked: str) -> None:
    need_tool("ndisc6")
    restart(bare)
    wait_for(bare, lambda found: bool(found))
    assert "52:55:0A:00:02:02" in bare.run("ndisc6", "-1", asked, DEVICE).stdout


def test_no_advertisements_where_they_are_off() -> None:
    need_tool("rdisc6")
    with served(configured=False, ra_enabled=False) as guest:
        restart(guest, accept_dad="0")
        result = guest.run("rdisc6", "-1", "-r", "1", "-w", "1000", DEVICE, ok=False)
        assert result.returncode != 0
        assert addresses(guest) == []
        assert guest.stats()["refused"]["router advertisements are off"] >= 1


# DHCPv6


def test_dhclient(bare: Served, tmp_path: Path) -> None:
    need_tool("dhclient")
    restart(bare, accept_dad="0")
    leases, pid = tmp_path / "leases", tmp_path / "pid"
    argv = (
        *("dhclient", "-6", "-1", "-v", "-lf", str(leases), "-pf", str(pid)),
        *("-sf", str(script(tmp_path)), "-cf", "/dev/null", DEVICE),
    )
    bare.run(*argv)
    try:
        said = told(tmp_path)
        assert said["reason"] == "BOUND6"
        assert said["new_ip6_address"] == FIRST
        assert said["new_dhcp6_name_servers"] == DNS6
        assert said["new_dhcp6_domain_search"] == "slirp.test. example.org."
        assert said["new_max_life"] == "86400"
        (lease,) = bare.call(lambda network: network.leases())
        assert lease["address"] == FIRST
    finally:
        bare.run("pkill", "-F", str(pid), ok=False)
    released = bare.run(*argv[:3], "-r", *argv[3:], ok=False)
    assert "RELEASE" in released.stderr.upper(), released.stderr
    assert bare.call(lambda network: network.leases()) == []
    assert bare.stats()["dhcpv6"]["release"] == 1


def test_dhclient_asks_for_information_only(bare: Served, tmp_path: Path) -> None:
    need_tool("dhclient")
    restart(bare, accept_dad="0")
    pid = tmp_path / "pid"
    bare.run(
        "dhclient", "-6", "-S", "-1", "-v", "-lf", str(tmp_path / "leases"), "-pf", str(pid),
        "-sf", str(script(tmp_path)), "-cf", "/dev/null", DEVICE,
    )  # fmt: skip
    try:
        assert told(tmp_path)["new_dhcp6_name_servers"] == DNS6
        assert bare.call(lambda network: network.leases()) == []
    finally:
        bare.run("pkill", "-F", str(pid), ok=False)


def test_dhcpcd(tmp_path: Path) -> None:
    """Another client, with rapid commit and a name, and a static lease by its DUID."""
    need_tool("dhcpcd")
    duid = "00:03:00:01:52:54:00:12:34:56"
    with served(configured=False, static_leases6={duid: "fd00::42"}) as guest:
        restart(guest, accept_dad="0")
        conf = tmp_path / "dhcpcd.conf"
        conf.write_text(
            "ipv6only\noption dhcp6_rapid_commit\nhostname guest\nfqdn both\nnoipv6rs\nwaitip 6\n"
            "option dhcp6_name_servers\ndhcp6\nia_na 1\n"
        )
        # It keeps what it knows in places that are everybody's: let it have its own.
        own = (
            "mount -t tmpfs none /var/lib/dhcpcd && mount -t tmpfs none /run && "
            f"echo {duid} > /var/lib/dhcpcd/duid && exec timeout 20 "
            f"dhcpcd -f {conf} -c {script(tmp_path)} -d -B -1 {DEVICE}"
        )
        result = guest.run("unshare", "--mount", "sh", "-c", own, ok=False)
        assert "adding address fd00::42/128" in result.stderr, result
        (lease,) = guest.call(lambda network: network.leases())
        assert (lease["address"], lease["hostname"]) == ("fd00::42", "guest")
        assert guest.stats()["dhcpv6"] == {"solicit": 1, "reply": 1}
        assert DNS6 in (tmp_path / "told").read_text()
