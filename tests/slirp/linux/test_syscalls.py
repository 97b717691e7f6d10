"""The calls that `os` lacks, each in a process that may be spoilt."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slirp.linux import syscalls
from tests.kit.need import need_netns

ROOT = Path(__file__).parents[3]


def run_python(program: str, *wrapper: str) -> str:
    result = subprocess.run(
        [*wrapper, sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_errors_are_oserrors() -> None:
    with pytest.raises(OSError, match="setns") as caught:
        syscalls.setns(-1, syscalls.CLONE_NEWNET)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError, match="/nowhere/at/all"):
        syscalls.umount("/nowhere/at/all")


def test_dropped_capabilities_are_gone_for_good() -> None:
    need_netns()
    program = (
        "from slirp.linux import syscalls; syscalls.drop_capabilities(); "
        "print(open('/proc/self/status').read())"
    )
    status = run_python(program, "unshare", "--user", "--map-root-user")
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(values[name], 16) == 0
    assert values["NoNewPrivs"] == "1"


def test_child_dies_with_its_parent() -> None:
    run_python(
        """
import os, select, signal
from slirp.linux import syscalls
reader, writer = os.pipe()
parent = os.fork()
if parent == 0:
    if os.fork() == 0:
        syscalls.die_with_parent(os.getppid())
        os.write(writer, b"ready")
    else:
        os.close(writer)
    signal.pause()
os.close(writer)
assert os.read(reader, 5) == b"ready"
os.kill(parent, signal.SIGKILL)
os.waitpid(parent, 0)
assert select.select([reader], [], [], 10)[0]
assert os.read(reader, 1) == b"", "somebody still writes"
"""
    )


def test_parent_that_ended_before_is_noticed() -> None:
    nobody = 1 << 22  # over the highest process id
    program = f"from slirp.linux import syscalls; syscalls.die_with_parent({nobody}, 15)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False)
    assert result.returncode == -signal.SIGTERM


def test_descriptor_limit_is_raised_to_what_is_allowed() -> None:
    limit = run_python("from slirp.linux import syscalls; print(syscalls.raise_descriptor_limit())")
    now = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[1])"
    assert limit == run_python(now)
