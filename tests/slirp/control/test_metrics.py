"""Metrics: their names, Prometheus's own parser's rules, and a port that no guest can read."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator

import pytest

from slirp.control.metrics import metrics
from slirp.control.metrics_port import MAX, WAIT_FOR, MetricsPort, parse_address
from slirp.control.verbs import Verbs
from slirp.errors import ConfigError
from tests.kit.clock import Clock
from tests.kit.guest import GATEWAY, Lab
from tests.kit.need import need_tool
from tests.kit.ports import free_port
from tests.slirp.host.conftest import open_fds

SAMPLE = re.compile(
    r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*"\})? -?[0-9.e+-]+'
)


def parsed(text: str) -> dict[str, float]:
    """The exposition format's rules: a TYPE before its samples, all of a family together, once."""
    found: dict[str, float] = {}
    families: list[str] = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert kind in ("counter", "gauge")
            assert name not in families
            assert (kind == "counter") == name.endswith("_total")
            families.append(name)
            continue
        assert SAMPLE.fullmatch(line), line
        name, value = line.rsplit(" ", 1)
        assert re.split(r"[{ ]", name)[0] == families[-1]
        assert name not in found
        found[name] = float(value)
    assert text.endswith("\n")
    return found


def test_every_counter_is_a_sample() -> None:
    with Lab() as lab:
        found = parsed(Verbs(lab.network).metrics())
    assert found["slirp_tcp_flows"] == 0
    assert found['slirp_port_frames_in_total{port="port1"}'] == 0
    assert found["slirp_tcp_opened_total"] == 0
    assert found['slirp_info{version="0.1.0"}'] == 1
    assert found["slirp_capture_running"] == 0


def test_reasons_are_labels() -> None:
    stats = {"refused": {"ttl": 3, 'a"b\\c\nd': 1}, "malformed": {"tcp: data offset": 2}}
    found = parsed(metrics(stats, {"up_seconds": 1.5}, "1"))
    assert found['slirp_refused_total{reason="ttl"}'] == 3
    assert found[r'slirp_refused_total{reason="a\"b\\c\nd"}'] == 1
    assert found['slirp_malformed_total{reason="tcp: data offset"}'] == 2
    assert found["slirp_up_seconds"] == 1.5


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9100", ("127.0.0.1", 9100)),
        ("localhost:9100", ("127.0.0.1", 9100)),
        ("*:0", ("0.0.0.0", 0)),
        ("[::1]:9100", ("::1", 9100)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "65536", "127.0.0.1", "1:-1", "1:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="metrics"):
        parse_address(text)


class Served:
    def __init__(self) -> None:
        self.clock = Clock()
        self.lab = Lab(clock=self.clock)
        verbs = Verbs(self.lab.network)
        self.port = MetricsPort(str(free_port()), self.lab.network, verbs.metrics)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.port.close()
    served.lab.__exit__(None, None, None)


def test_curl(served: Served) -> None:
    command = [need_tool("curl"), "-sf", f"http://127.0.0.1:{served.port.address[1]}/metrics"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        served.lab.turn(lambda: process.poll() is not None)
        assert parsed(process.stdout.read())["slirp_tcp_flows"] == 0
    assert not served.port.scrapes


def test_guest_gets_there_and_is_refused(served: Served) -> None:
    stream = served.lab.guest.connect((GATEWAY, served.port.address[1]))
    stream.send(b"GET /metrics HTTP/1.1\r\n\r\n")
    served.lab.turn(lambda: stream.got_reset or stream.got_fin)
    assert stream.received == b""
    assert served.port.refused == 1


def test_scrapes_that_say_nothing_end(served: Served) -> None:
    before = open_fds()
    silent = []
    for _ in range(MAX + 3):
        silent.append(socket.create_connection(served.port.address))
        served.lab.turn()
    assert len(served.port.scrapes) == MAX
    assert served.port.refused == 3
    served.clock.now += WAIT_FOR + 1
    served.lab.turn()
    assert not served.port.scrapes
    for sock in silent:
        sock.close()
    assert open_fds() == before
