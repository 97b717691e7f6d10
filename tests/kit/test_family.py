"""Nothing outlives a block, nor the process that started it; and what does is found."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.kit.family import TIED, children, descendants, leftovers, running
from tests.kit.namespace import PATIENCE, ROOT
from tests.kit.need import need_tool

# Told to end, it ends, and leaves what hears nothing: as pasta does with the command that it runs.
DEAF: Final = "(trap '' TERM INT HUP; exec sleep 1000) & "
LEAVES: Final = f"trap 'exit 0' TERM; {DEAF} echo up; wait"


@pytest.fixture(autouse=True)
def _setpriv() -> None:
    need_tool(TIED[0])


def writers_are_gone(reader: int) -> bool:
    """Whoever had the other end of the pipe has ended."""
    while os.read(reader, 100):
        pass
    return True


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_what_a_program_leaves_ends_with_the_block(error: type[BaseException] | None) -> None:
    reader, writer = os.pipe()
    expected = contextlib.nullcontext() if error is None else pytest.raises(error)
    with expected, running(["sh", "-c", LEAVES], stdout=writer):
        os.close(writer)
        assert os.read(reader, 3) == b"up\n"
        if error is not None:
            raise error
    assert writers_are_gone(reader)
    os.close(reader)


def test_a_program_that_does_not_hear_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kit.family.PATIENCE", 0.2)
    script = "trap '' TERM; echo up; while :; do sleep 1000; done"
    with running(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
    assert process.returncode == -signal.SIGKILL


def test_a_program_that_has_ended_is_no_error() -> None:
    with running(["true"]) as process:
        process.wait(PATIENCE)
    assert process.returncode == 0


STARTER: Final = """
import signal, subprocess, sys
from benchmarks.report import end_tidily
from tests.kit.family import running
end_tidily()
with running(["sh", "-c", sys.argv[1]], stdout=subprocess.PIPE, stderr=None) as process:
    process.stdout.readline()
    print("up", flush=True)
    signal.pause()
"""


@contextlib.contextmanager
def starting(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A starter that is up. What it starts has its standard error, which is the pipe to us."""
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process


def rest_of(process: subprocess.Popen[bytes]) -> bytes:
    """What is still said, until nobody is left who could say something."""
    assert process.stdout is not None
    fd, said = process.stdout.fileno(), b""
    while select.select([fd], [], [], PATIENCE)[0]:
        data = os.read(fd, 65536)
        if not data:
            return said
        said += data
    raise AssertionError("somebody is left")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_is_left_ends_with_whoever_is_told_to_end(number: int) -> None:
    argv = [sys.executable, "-c", STARTER, LEAVES]
    with starting(argv) as process:
        os.killpg(process.pid, number)  # as a terminal does it
        rest_of(process)


def test_a_program_dies_with_whoever_is_killed() -> None:
    """… and what waits below it sees its standard input close."""
    argv = [sys.executable, "-c", STARTER, "cat <&0 & echo up; wait"]
    with starting(argv) as process:
        process.kill()
        assert rest_of(process) == b""


def test_descendants_are_found_at_any_depth() -> None:
    script = "(sh -c 'sleep 1000 & echo up; wait') & wait"
    with running(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)]
        assert b"wait" in lines[0]
        assert lines[-1].startswith((b"sleep", b"sh"))  # the fork, if it is not sleep yet
        assert len(lines) >= 2


def test_what_has_made_itself_a_daemon_is_found_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kit.family.PATIENCE", 0.2)
    before = children(os.getpid())
    reader, writer = os.pipe()
    subprocess.run(["sh", "-c", "setsid sleep 1234 &"], stdout=writer, check=True)
    os.close(writer)
    assert leftovers(before) in (["sleep 1234"], ["setsid sleep 1234"])
    assert writers_are_gone(reader)
    os.close(reader)
    assert leftovers(before) == []
