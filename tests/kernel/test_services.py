"""DHCP and DNS as programs of others ask for them: udhcpc, dhclient, dig."""

from __future__ import annotations

import ipaddress
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.nameserver import Nameserver
from tests.kit.need import need_tool
from tests.kit.served import DEVICE, DNS, GATEWAY, Served, served
from tests.kit.web import WebServer

NAMES = {
    "many.slirp.test": [f"192.0.2.{n}" for n in range(1, 101)],
    "one.slirp.test": ["192.0.2.7"],
}


@pytest.fixture
def bare() -> Iterator[Served]:
    """A guest whose device has no address yet."""
    with served(
        configured=False, domain="slirp.test", search=("slirp.test",), hostname="guest"
    ) as running:
        yield running


def script(path: Path, variables: str) -> Path:
    """What a DHCP client runs when something happens: it writes down what it was told."""
    file = path / "script"
    file.write_text(f"#!/bin/sh\nenv | grep -E '{variables}' >> {path}/told\n")
    file.chmod(0o755)
    return file


def test_udhcpc(bare: Served, tmp_path: Path) -> None:
    need_tool("udhcpc")
    told = script(tmp_path, "^(ip|subnet|router|dns|domain|mtu|lease|serverid|hostname)=")
    bare.run(
        "udhcpc", "-i", DEVICE, "-n", "-q", "-f", "-t", "3", "-T", "1", "-s", str(told),
        "-O", "mtu", "-O", "search", "-x", "hostname:fromguest",
    )  # fmt: skip
    said = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    assert said["ip"] == "10.0.2.15"
    assert said["subnet"] == "255.255.255.0"
    assert said["router"] == said["serverid"] == GATEWAY
    assert said["dns"] == DNS
    assert said["domain"] == "slirp.test"
    assert said["mtu"] == "1500"
    (lease,) = bare.call(lambda network: network.leases())
    assert (lease["address"], lease["hostname"]) == ("10.0.2.15", "fromguest")


def test_dhclient(bare: Served, tmp_path: Path) -> None:
    need_tool("dhclient")
    told = script(tmp_path, "^(new_|reason)")
    leases, pid = tmp_path / "leases", tmp_path / "pid"
    argv = ("dhclient", "-4", "-1", "-v", "-lf", str(leases), "-pf", str(pid), "-sf", str(told))
    bare.run(*argv, "-cf", "/dev/null", DEVICE)
    try:
        text = (tmp_path / "told").read_text()
        said = dict(line.split("=", 1) for line in text.splitlines())
        assert said["reason"] == "BOUND"
        assert said["new_ip_address"] == "10.0.2.15"
        assert said["new_subnet_mask"] == "255.255.255.0"
        assert said["new_routers"] == said["new_dhcp_server_identifier"] == GATEWAY
        assert said["new_domain_name_servers"] == DNS
        assert re.search(r"fixed-address 10\.0\.2\.15;", leases.read_text())
    finally:
        bare.run("pkill", "-F", str(pid), ok=False)


@pytest.fixture(scope="module")
def guest() -> Iterator[Served]:
    with served(names=NAMES) as running:
        yield running


@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig(transport: str, guest: Served) -> None:
    need_tool("dig")
    ask = ("dig", f"@{DNS}", "+short", "+tries=1", "+timeout=3", transport)
    assert guest.run(*ask, "gateway.slirp.internal").stdout.split() == [GATEWAY]
    assert guest.run(*ask, "ONE.slirp.TEST").stdout.split() == ["192.0.2.7"]
    assert guest.run(*ask, "one.slirp.test", "AAAA").stdout == ""


def test_dig_comes_back_over_tcp_for_a_long_answer(guest: Served) -> None:
    need_tool("dig")
    ask = ("dig", f"@{DNS}", "+tries=1", "+timeout=3", "+bufsize=512", "many.slirp.test")
    result = guest.run(*ask)
    assert "Truncated, retrying in TCP mode" in result.stdout
    found = re.findall(r"IN\tA\t(\S+)", result.stdout)
    assert sorted(map(ipaddress.ip_address, found)) == [
        ipaddress.ip_address(text) for text in NAMES["many.slirp.test"]
    ]


def test_a_name_that_nobody_can_resolve(guest: Served) -> None:
    """No resolver is configured: SERVFAIL, never a claim about the name."""
    need_tool("dig")
    result = guest.run("dig", f"@{DNS}", "+tries=1", "+timeout=3", "nowhere.example")
    assert "status: SERVFAIL" in result.stdout


def test_what_is_going_on_is_json(guest: Served) -> None:
    state = guest.call(lambda n: json.dumps([n.stats(), n.flows(), n.leases()]))
    assert json.loads(state)


GATEWAY6 = "fd00::2"
CONTENT = random.Random(5).randbytes(300_001)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "sub").mkdir()
    (folder / "sub/data").write_bytes(CONTENT)
    (folder / "empty").touch()
    (folder / "passwd").symlink_to("/etc/passwd")
    return folder


@pytest.fixture(scope="module")
def server(files: Path) -> Iterator[Served]:
    with served(tftp=str(files), http=str(files), ntp=True, host_loopback=False) as running:
        yield running


def test_tftp(server: Served, tmp_path: Path) -> None:
    need_tool("tftp")
    for name, content in (("sub/data", CONTENT), ("empty", b"")):
        local = tmp_path / "got"
        server.run("tftp", "-m", "binary", GATEWAY, "-c", "get", name, str(local))
        assert local.read_bytes() == content
    said = server.run("tftp", "-m", "binary", GATEWAY, "-c", "get", "passwd", "/dev/null").stdout
    assert "no such file" in said
    refused = server.run(
        "tftp", "-m", "binary", GATEWAY, "-c", "put", str(tmp_path / "got"), "new"
    ).stdout
    assert "read only" in refused


@pytest.mark.parametrize(
    "options", [(), ("blksize 1468",), ("blksize 9000", "windowsize 16"), ("tsize 1", "timeout 3")]
)
def test_atftp(server: Served, tmp_path: Path, options: tuple[str, ...]) -> None:
    need_tool("atftp")
    local = tmp_path / "got"
    words = [word for option in options for word in ("--option", option)]
    server.run("atftp", *words, "-g", "-r", "sub/data", "-l", str(local), GATEWAY)
    assert local.read_bytes() == CONTENT


def test_curl_from_the_gateway(server: Served, tmp_path: Path) -> None:
    need_tool("curl")
    url, local = f"http://{GATEWAY}/sub/data", tmp_path / "got"
    server.run("curl", "-sS", "--fail", "-o", str(local), url)
    assert local.read_bytes() == CONTENT
    server.run("curl", "-sS", "--fail", "-r", "1000-1999", "-o", str(local), url)
    assert local.read_bytes() == CONTENT[1000:2000]
    local.write_bytes(CONTENT[:100_000])
    server.run("curl", "-sS", "--fail", "-C", "-", "-o", str(local), url)  # goes on where it was
    assert local.read_bytes() == CONTENT
    head = server.run("curl", "-sS", "-I", url).stdout
    assert f"Content-Length: {len(CONTENT)}" in head
    told = "%{http_code} %{num_connects}\n"
    several = server.run("curl", "-sS", "-o", "/dev/null", "-w", told, url, "-o", "/dev/null", url)
    assert several.stdout.split() == ["200", "1", "200", "0"]
    for path in ("/", "/passwd", "/..%2f..%2fetc/passwd", "/../../etc/passwd", "/sub"):
        status = ("-o", "/dev/null", "-w", "%{http_code}")
        answer = server.run("curl", "-sS", "--path-as-is", *status, f"http://{GATEWAY}{path}")
        assert answer.stdout == "404", path
    assert server.run("curl", "-sS", "-d", "x", *status, url).stdout == "405"


def test_a_client_that_never_reads_holds_nobody_up(server: Served) -> None:
    need_tool("curl")
    url = f"http://{GATEWAY}/sub/data"
    slow = server.start("curl", "-sS", "--limit-rate", "1", "-o", "/dev/null", url)
    try:
        for _ in range(3):
            server.run("curl", "-sS", "--fail", "-o", "/dev/null", url)
    finally:
        slow.kill()
        slow.wait()


def test_the_same_over_ipv6(server: Served, tmp_path: Path) -> None:
    for tool in ("curl", "tftp", "ntpdate", "dig"):
        need_tool(tool)
    server.run("ip", "-6", "addr", "add", "fd00::100/64", "dev", DEVICE, "nodad")
    local = tmp_path / "got"
    server.run("curl", "-sS", "--fail", "-o", str(local), f"http://[{GATEWAY6}]/sub/data")
    assert local.read_bytes() == CONTENT
    local.unlink()
    server.run("tftp", "-6", "-m", "binary", GATEWAY6, "-c", "get", "sub/data", str(local))
    assert local.read_bytes() == CONTENT
    assert "fd00::2" in server.run("ntpdate", "-q", GATEWAY6).stdout
    found = server.run("dig", "@fd00::3", "+short", "gateway.internal", "AAAA").stdout
    assert found.strip() == GATEWAY6


def test_sntp(server: Served) -> None:
    need_tool("ntpdate")
    said = server.run("ntpdate", "-q", GATEWAY, env={**os.environ, "TZ": "UTC"}).stdout
    offset = re.search(r"([-+]\d+\.\d+) \+/- ", said)
    assert offset is not None, said
    assert abs(float(offset[1])) < 5.0


def test_dig_finds_what_the_network_knows(tmp_path: Path) -> None:
    need_tool("dig")
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.8 filed.test\n127.0.1.1 myself.test\n")
    with (
        Nameserver("127.0.0.19", "192.0.2.77"),
        Nameserver("127.0.0.20", "192.0.2.78"),
        served(
            configured=False, names={"both.test": ["192.0.2.7", "2001:db8::7"]}, hosts=[str(hosts)],
            resolvers=["127.0.0.19"], domain_resolvers={"corp.test": ["127.0.0.20"]},
        ) as guest,
    ):  # fmt: skip
        guest.run("ip", "addr", "add", "10.0.2.15/24", "dev", DEVICE)
        guest.run(
            "udhcpc", "-i", DEVICE, "-n", "-q", "-f", "-s", "/bin/true", "-x", "hostname:Web-1"
        )

        def ask(*words: str) -> list[str]:
            return guest.run("dig", f"@{DNS}", "+short", "+tries=1", *words).stdout.split()

        assert ask("both.test") == ["192.0.2.7"]
        assert ask("both.test", "AAAA") == ["2001:db8::7"]
        assert ask("-x", "2001:db8::7") == ["both.test."]
        assert ask("filed.test") == ["192.0.2.8"]
        assert ask("host.internal") == ask("gateway.internal") == ask("myself.test") == [GATEWAY]
        assert ask("web-1.internal") == ask("WEB-1") == ["10.0.2.15"]
        assert ask("-x", "10.0.2.15") == ["web-1.internal."]
        assert ask("outside.test") == ["192.0.2.77"]
        assert ask("x.corp.test") == ["192.0.2.78"]
        before = guest.stats()["dns"]["relayed"]
        assert ask("x.corp.test") == ["192.0.2.78"]  # a second at the most, by the record's TTL
        counted = guest.stats()["dns"]
        assert counted.get("cached", 0) + counted["relayed"] == before + 1


def test_guest_forwards(tmp_path: Path) -> None:
    """nc -U behind one, a command behind another, a web server behind a third."""
    need_tool("nc")
    need_tool("curl")
    path = tmp_path / "sock"
    with WebServer(CONTENT) as web:
        specs = [
            f":5000={path}",
            "10.0.2.50:7=cmd:sed -u s/^/got:/",
            f"192.0.2.80:80=127.0.0.1:{web.port}",
            f"[fd00::50]:80=127.0.0.1:{web.port}",
            f":8080=127.0.0.1:{web.port}",
        ]  # fmt: skip
        with (
            served(guest_forwards=specs) as guest,
            subprocess.Popen(
                ["nc", "-l", "-N", "-U", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as listener,
        ):
            assert listener.stdin is not None
            listener.stdin.write(b"from the host\n")
            listener.stdin.close()
            guest.run("sh", "-c", f"until [ -S {path} ]; do :; done")
            said = guest.run("nc", "-N", GATEWAY, "5000", input="from the guest\n").stdout
            assert said == "from the host\n"
            assert listener.stdout is not None
            assert listener.stdout.read() == b"from the guest\n"
            said = guest.run("nc", "-N", "10.0.2.50", "7", input="one\ntwo\n").stdout
            assert said == "got:one\ngot:two\n"
            local = tmp_path / "got"
            guest.run("curl", "-sS", "-o", str(local), "http://192.0.2.80/")
            assert local.read_bytes() == CONTENT
            assert guest.run("ping", "-c", "1", "-W", "5", "10.0.2.50")
            guest.run("ip", "-6", "addr", "add", "fd00::100/64", "dev", DEVICE, "nodad")
            for host in (GATEWAY, f"[{GATEWAY6}]", "[fd00::50]"):
                port = 80 if host == "[fd00::50]" else 8080
                guest.run("curl", "-sS", "-o", str(local), f"http://{host}:{port}/")
                assert local.read_bytes() == CONTENT
            assert guest.run("ping", "-c", "1", "-W", "5", "fd00::50")
