"""Linux's TCP and ours over a line that loses, doubles, delays and reorders frames.

Digests have to be equal, and a transfer has to end in seconds. `tc netem` does it where the kernel
has it; a port of the kit's, with a seeded die, does it everywhere, with super-frames and without.

Does not do: throughput under loss.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nic.port import Port
from tests.kernel.test_transfers import digest, octets
from tests.kit.need import need_tool
from tests.kit.served import DEVICE, GATEWAY, Served, served
from tests.kit.weather import Forecast, WeatherPort
from tests.kit.web import WebServer

SIZE = 2_000_000

FORECASTS = [
    pytest.param(Forecast(loss=0.02), id="2% lost"),
    pytest.param(Forecast(loss=0.05), id="5% lost"),
    pytest.param(Forecast(late=0.2), id="a fifth late"),
    pytest.param(Forecast(doubled=0.2), id="a fifth doubled"),
    pytest.param(Forecast(loss=0.02, doubled=0.02, late=0.1), id="all of it"),
]


def fetch_and_post(guest: Served, tmp_path: Path) -> None:
    data = octets(SIZE)
    with WebServer(data) as web:
        url = f"http://{GATEWAY}:{web.port}/"
        got = tmp_path / "got"
        guest.run("curl", "-sS", "--max-time", "25", "-o", str(got), url)
        assert digest(got.read_bytes()) == web.digest
        guest.run(
            "curl", "-sS", "--max-time", "25", "-H", "Expect:", "--data-binary", f"@{got}", url
        )
        (posted,) = web.posted
        assert digest(posted) == web.digest


@pytest.mark.parametrize("tso", [True, False], ids=["super-frames", "plain frames"])
@pytest.mark.parametrize("forecast", FORECASTS)
def test_digests_in_bad_weather(forecast: Forecast, tso: bool, tmp_path: Path) -> None:
    need_tool("curl")
    ports: list[WeatherPort] = []

    def wrap(port: Port) -> Port:
        ports.append(WeatherPort(port, forecast, seed=7))
        return ports[-1]

    try:
        with served(wrap=wrap, tso=tso) as guest:
            fetch_and_post(guest, tmp_path)
            for _ in range(5):  # few frames cross where they are large
                if ports[0].lost or ports[0].late or forecast.doubled:
                    break
                fetch_and_post(guest, tmp_path)
            assert ports[0].lost or ports[0].late or forecast.doubled, "the weather was fine"
    finally:
        ports[0].close()


@pytest.mark.parametrize(
    "netem",
    ["loss 1%", "delay 5ms 2ms", "delay 3ms reorder 25% 50%", "duplicate 1%"],
)
def test_digests_under_netem(netem: str, tmp_path: Path) -> None:
    need_tool("curl")
    need_tool("tc")
    with served() as guest:
        argv = guest.argv(["tc", "qdisc", "add", "dev", DEVICE, "root", "netem", *netem.split()])
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            # No package brings it: it is for the kernel to have, so it is no failure anywhere.
            assert "kind is unknown" in done.stderr, done.stderr
            pytest.skip(f"this kernel has no sch_netem: {done.stderr.strip()}")
        fetch_and_post(guest, tmp_path)
