"""Linux behind libkrun's framings (tests/kit/krun.py), on a network of the command line's."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.krun import start
from tests.kit.namespace import PATIENCE
from tests.kit.need import need_tool
from tests.kit.web import WebServer
from tests.qemu.test_machines import CONTENT, listening

WAYS = {"stream": "unix", "unixgram": "dgram", "vfkit": "dgram"}


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text
    return text


@pytest.mark.parametrize("features", [False, True], ids=["no offloads", "offloads"])
@pytest.mark.parametrize("way", WAYS)
def test_linux_fetches_and_sends(tmp_path: Path, web: WebServer, way: str, features: bool) -> None:
    """With offloads, what the guest sends has no checksums and is longer than the MTU."""
    need_tool("curl")
    path, content = tmp_path / "net", tmp_path / "content"
    content.write_bytes(CONTENT)
    script = f"""
set -e
ping -c 1 -W 5 10.0.2.2 > {tmp_path}/ping
curl -sS http://10.0.2.2:{web.port}/ | sha256sum
curl -sS --data-binary @{content} http://10.0.2.2:{web.port}/
"""
    with (
        listening(f"{WAYS[way]}:{path}") as server,
        start(f"{way}:{path}", "sh", "-c", script, features=features) as machine,
    ):
        text = output(machine)
        server.expect("machine 1 connected to")
        assert server.end() == 0
    assert web.digest in text
    assert web.posted == [CONTENT]
    found = re.search(r"largest frame (\d+), lost (\d+)", text)
    assert found is not None
    assert (int(found[1]) > 1514) is features
    assert found[2] == "0"
    assert not path.exists()
    assert "~" not in "".join(os.listdir(tmp_path))


@pytest.mark.parametrize("way", ["unixgram", "vfkit"])
def test_several_machines_at_one_datagram_socket(tmp_path: Path, web: WebServer, way: str) -> None:
    """One after the other and at the same time; the first that ended is taken off by then."""
    need_tool("curl")
    path = tmp_path / "net"
    fetch = f"curl -sS http://10.0.2.2:{web.port}/ | sha256sum"
    wait = f"{fetch}; curl -sS http://10.0.2.2:{web.port}/wait > {tmp_path}/waited"
    with listening(f"dgram:{path}") as server:
        with start(f"{way}:{path}", "sh", "-c", fetch) as first:
            assert web.digest in output(first)
        with start(f"{way}:{path}", "sh", "-c", wait) as second:
            server.expect("machine 2 connected to")
            server.expect("machine 1 is gone")
            with start(f"{way}:{path}", "sh", "-c", fetch, address="10.0.2.16") as third:
                assert web.digest in output(third)
            server.expect("machine 3 connected to")
            assert "machine 2 is gone" not in server.said
            web.release()
            assert web.digest in output(second)
        assert server.end() == 0
