"""Newer programs than the machine's own, from a root of Debian testing (tools/testing-root).

    run(*newer("tshark", tmp_path), "-r", str(tmp_path / "a.pcapng"))

`newer` gives what to put before a program's arguments. The program runs in the network and process
namespaces of whoever starts it (`Holder.entering()` in front puts it into a test's own), with the
process id that was started and descriptors as they are; of the machine's files it sees those that
are named. The root is built by the first test that asks, once per machine: the tool has a lock for
which the other workers wait. Where it cannot be built the test is skipped with the tool's own
reason, as with anything else that is missing (tests/kit/need.py).

Does not do: build what `make test` has built before; that is the usual case.
"""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Final

from tests.kit.namespace import ROOT
from tests.kit.need import missing, need_root, need_tool

TOOL: Final = str(ROOT / "tools/testing-root")
BUILD_FOR: Final = 200.0  # seconds, less than a test may take


@functools.cache
def _why_not() -> str:
    """Why there is no root; empty: there is one."""
    try:
        done = subprocess.run(
            [TOOL], capture_output=True, text=True, timeout=BUILD_FOR, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no root of Debian testing within {BUILD_FOR:.0f} s; run tools/testing-root"
    return done.stderr.splitlines()[-1] if done.returncode else ""


def need_testing_root() -> None:
    need_root()
    for tool in ("debootstrap", "unshare"):
        need_tool(tool)
    reason = _why_not()
    if reason:
        missing(reason)


def newer(program: str, *shown: Path) -> tuple[str, ...]:
    """The start of a command line; `shown`: files and folders that the program is to see."""
    need_testing_root()
    binds = [word for path in shown for word in ("--bind", str(path))]
    return (TOOL, *binds, "--", program)
