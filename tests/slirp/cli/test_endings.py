"""However a command is ended, what it has started ends as well."""

from __future__ import annotations

import os
import select
import signal
import subprocess

import pytest

from tests.kit.family import children, leftovers
from tests.kit.namespace import PATIENCE, ROOT, SLIRP
from tests.kit.need import need_tool, need_tun
from tests.slirp.guest.bench import need_unicorn

ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]


def end_when(said: str, number: int, *command: str) -> None:
    """Send the signal as soon as that is in the output; see that nothing is left."""
    before = children(os.getpid())
    with subprocess.Popen(
        [*SLIRP, *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        output = b""
        while said.encode() not in output:
            assert select.select([process.stdout], [], [], PATIENCE)[0], output
            data = os.read(process.stdout.fileno(), 65536)
            assert data, output
            output += data
        process.send_signal(number)
        process.wait(PATIENCE)
        assert leftovers(before) == []


@pytest.mark.parametrize("number", ENDINGS)
def test_the_demos_server_ends_with_the_demo(number: int) -> None:
    need_unicorn()
    end_when("lance:", number, "demo", "--size", "64M")


@pytest.mark.parametrize("number", ENDINGS)
def test_the_command_of_run_ends_with_it(number: int) -> None:
    need_tun()
    end_when("up", number, "run", "--", "sh", "-c", "echo up; exec sleep 1000")


@pytest.mark.parametrize("number", ENDINGS)
def test_qemu_ends_with_slirp_qemu(number: int) -> None:
    machine = (need_tool("qemu-system-x86_64"), "-S", "-display", "none", "-nodefaults")
    monitor = ("-chardev", "stdio,id=m", "-mon", "m,mode=control")  # greets with its version
    end_when('"QMP"', number, "qemu", "--", *machine, *monitor)
