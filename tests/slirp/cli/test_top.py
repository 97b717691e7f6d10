"""`slirp top` with keys pressed by a pilot, on a network that runs in another thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slirp.cli.main import main
from slirp.control.client import Connection
from slirp.control.server import ControlSocket
from slirp.control.verbs import Verbs
from tests.kit.guest import GATEWAY, Lab
from tests.kit.need import missing

PATIENCE = 10.0  # seconds


class Running:
    """A Lab whose network another thread turns, with two flows to a server of ours."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "c.sock")
        self.lab = Lab()
        self.listener = socket.create_server(("127.0.0.1", 0))
        port = self.listener.getsockname()[1]
        self.lab.guest.connect((GATEWAY, port))
        self.peers = [self.listener.accept()[0]]
        self.lab.guest.connect((GATEWAY, port))
        self.peers.append(self.listener.accept()[0])
        verbs = Verbs(self.lab.network)
        self.control = ControlSocket(self.path, verbs, is_admitted=lambda peer: True)
        self.thread = threading.Thread(target=self.lab.network.run)
        self.thread.start()

    def close(self) -> None:
        self.lab.network.stop()
        self.thread.join()
        self.control.close()
        self.lab.__exit__(None, None, None)
        for sock in (self.listener, *self.peers):
            sock.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    try:
        import textual  # noqa: F401
    except ImportError:
        missing("textual is not installed")
    running = Running(tmp_path)
    yield running
    running.close()


def driven(running: Running, folder: Path, script: Callable[[Any, Any], Any]) -> Any:
    """The application after a script of keys."""
    from slirp.cli.screen import Top

    async def program() -> Any:
        with Connection(running.path) as network:
            top = Top(network, 0.2, str(folder / "top.pcapng"))
            async with asyncio.timeout(PATIENCE), top.run_test(size=(160, 40)) as pilot:
                await pilot.pause()
                await script(top, pilot)
            return top

    return asyncio.run(program())


def table(top: Any) -> Any:
    from textual.widgets import DataTable

    return top.query_one("#flows", DataTable)


def test_flows_guests_and_status_are_shown(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        assert table(top).row_count == 2
        assert {str(key.value) for key in table(top).rows} == {"t1", "t2"}
        from textual.widgets import Static

        assert "10.0.2.15" in str(top.query_one("#guests", Static).render())
        assert "2 flows" in str(top.query_one("#status", Static).render())
        assert "host.internal" in map(str, table(top).get_row("t1"))

    driven(running, tmp_path, script)


def test_sort_filter_and_kill(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        before = top.sorted_by
        await pilot.press("s")
        assert top.sorted_by != before
        await pilot.press("f", *"t2", "enter")
        await pilot.pause()
        assert [flow["id"] for flow in top.shown()] == ["t2"]
        assert table(top).row_count == 1
        await pilot.press("k")
        await pilot.pause()
        assert "t2 was ended" in top.said
        await pilot.press("f", *["backspace"] * 4, "enter")
        await pilot.pause()
        assert [flow["id"] for flow in top.shown()] == ["t1"]

    driven(running, tmp_path, script)


def test_a_look_while_the_screen_is_taken_down(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        await pilot.pause()
        await top.query("#status").remove()
        top.look()

    assert driven(running, tmp_path, script).ended == ""


def test_filter_by_name_and_a_name_that_is_too_long(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        await pilot.press("f", *"host.internal", "enter")
        await pilot.pause()
        assert len(top.shown()) == 2
        for flow in top._flows:
            flow["remote_name"] = "x" * 300 + ".example.test" if flow["id"] == "t1" else None
        top._show_flows()
        top.wanted = ""
        top._show_flows()
        (shown,) = (cell for cell in map(str, table(top).get_row("t1")) if "example" in cell)
        assert len(shown) == 32
        assert shown.startswith("…")

    driven(running, tmp_path, script)


def test_capture_by_key(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        await pilot.press("c")
        assert top.network.ask("capture.status")["capture"] is not None
        await pilot.press("c")
        assert top.network.ask("capture.status")["capture"] is None

    driven(running, tmp_path, script)
    assert (tmp_path / "top.pcapng").stat().st_size > 0


def test_it_ends_with_the_network(running: Running, tmp_path: Path) -> None:
    async def script(top: Any, pilot: Any) -> None:
        with Connection(running.path) as other:
            other.ask("stop")
        running.thread.join()
        running.control.lines.close()
        running.control.lines.close = lambda: None  # type: ignore[method-assign] # once is enough
        top.look()
        await pilot.pause()

    assert "closed" in driven(running, tmp_path, script).ended


def test_without_textual_or_network_it_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", str(tmp_path / "none")]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("slirp: ")
    assert shown.count("\n") == 1
