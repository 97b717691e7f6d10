"""The networks that benchmarks start end with them, and so does what sits in their namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final

import pytest

from benchmarks.networks import of_testing
from tests.kit.family import children, leftovers
from tests.kit.namespace import PATIENCE, ROOT
from tests.kit.need import need_root, need_tool, need_tun
from tests.kit.testing_root import need_testing_root

NAMES: Final = ("slirp", "slirp4netns", "pasta")

HOLD: Final = """
import sys, time
from benchmarks.networks import of_testing
from benchmarks.report import end_tidily
end_tidily()
with of_testing() as networks:
    (network,) = [n for n in networks if n.name == sys.argv[1]]
    with network.guest(1500):
        print("up", flush=True)
        while True:  # what comes just before a pause() is not heard in it
            time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    need_root()
    need_tun()
    for tool in ("nsenter", "setpriv"):
        need_tool(tool)
    need_testing_root()


def inside(namespace: BinaryIO) -> list[str]:
    """The processes in a network namespace; while it is open no other one gets its number."""
    number, found = os.fstat(namespace.fileno()).st_ino, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "ns/net").stat().st_ino == number:
                found.append((path / "comm").read_text())
        except OSError:  # it has ended meanwhile
            pass
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [False, True])
def test_nobody_is_left_in_the_namespace(name: str, error: bool) -> None:
    with of_testing() as networks, ExitStack() as stack:
        (network,) = [one for one in networks if one.name == name]
        try:
            with network.guest(1500) as guest:
                namespace = stack.enter_context(open(f"/proc/{guest.sitter}/ns/net", "rb"))
                assert inside(namespace)
                if error:
                    raise OSError("the load failed")
        except OSError:
            assert error
        assert inside(namespace) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_benchmark_that_is_ended(name: str, number: int) -> None:
    before = children(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == b"up\n", said + process.stdout.read()
        os.killpg(process.pid, number)  # as a terminal does it
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
    assert leftovers(before) == []
