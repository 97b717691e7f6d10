"""The examples, as somebody would run them, and the README's lines of Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nic.lance import Lance
from slirp.guest.driver import LanceDriver

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
RUN_FOR = 60.0  # seconds; each takes a fraction of one

SHOWN = {
    "minimal_machine": ("hello from the host", "frames received through the ring"),
    "own_port": ("hello from the host", "0 bytes copied on the way"),
    "asyncio_loop": ("hello from asyncio",),
    "forward": ("hello from the guest", "guest=('10.0.2.15', 80)"),
}
HELPERS = {"toy_guest", "toy_host"}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SHOWN) | HELPERS


@pytest.mark.parametrize("name", SHOWN)
def test_it_does_what_it_says(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RUN_FOR,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in SHOWN[name]:
        assert line in done.stdout


class Emulator:
    """What the README's lines expect of the emulator that they are put into."""

    def __init__(self, toy: Any) -> None:
        self.ram = memoryview(bytearray(1 << 20))
        self.level = False
        self.lance: Lance | None = None
        self._toy = toy
        self.guest: Any = None
        self._driver: LanceDriver | None = None

    def set_irq(self, level: bool) -> None:
        self.level = level

    def running(self) -> Iterator[bool]:
        while self.guest is None or not self.guest.is_done:
            yield True
        yield False

    def run_cpu(self, lance: Lance, memory: Any, port: int) -> None:
        """A slice of guest code."""
        if self._driver is None:
            self._driver = LanceDriver(memory, lance)
            self.guest = self._toy.ToyGuest(self._driver.send, fetch=("10.0.2.2", port))
            self._driver.start()
            self.guest.start()
        if self.level:
            self._driver.handle_interrupt()
        for frame in self._driver.receive():
            self.guest.handle_frame(frame)


class Addressable:
    """The emulator's RAM, as its CPU sees it."""

    def __init__(self, ram: memoryview) -> None:
        self._ram = ram

    def slices(self, addr: int, length: int) -> Any:
        from dma.iovec import IoVec

        return IoVec((self._ram[addr : addr + length],))


def readme_python() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import toy_guest
    import toy_host

    yield toy_guest, toy_host
    for name in HELPERS:
        sys.modules.pop(name, None)


def test_the_readme_s_lines_put_an_emulator_on_the_network(toys: Any) -> None:
    toy_guest, toy_host = toys
    (code,) = [block for block in readme_python() if "Lance(" in block]
    emulator = Emulator(toy_guest)
    turns = emulator.running()
    names: dict[str, Any] = {"ram": emulator.ram, "set_irq": emulator.set_irq}
    names["running"] = lambda: next(turns)
    with toy_host.web_server(b"hello\n") as port:
        memory = Addressable(emulator.ram)
        names["run_cpu"] = lambda: emulator.run_cpu(names["lance"], memory, port)
        exec(compile(code, "README.md", "exec"), names)
    names["net"].close()
    names["lance"].close()
    assert emulator.guest.received.endswith(b"hello\n")


def test_the_readme_s_port_is_one(toys: Any) -> None:
    toy_guest, toy_host = toys
    (code,) = [block for block in readme_python() if "PortDefaults" in block]
    names: dict[str, Any] = {}
    deliver: Callable[[bytes], None] = lambda frame: guest.handle_frame(frame)  # noqa: E731
    with toy_host.web_server(b"hello\n") as port:
        exec(compile(code, "README.md", "exec"), names)
        wire = names["Wire"](deliver)
        import slirp

        with slirp.Network() as net:
            guest = toy_guest.ToyGuest(wire.send, fetch=("10.0.2.2", port), done=net.stop)
            net.attach(wire)
            guest.start()
            net.run()
    wire.close()
    assert guest.received.endswith(b"hello\n")
