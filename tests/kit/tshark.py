"""Wireshark's command line as a judge: the installed one, and the newest from Debian testing.

    lines = tshark(version, path, "-Y", "http", "-T", "fields", "-e", "frame.interface_name")

A test that wants both is parametrized over VERSIONS. Whatever tshark has to say on standard error
is a failure, save that it would rather not be root.

Does not do: capture.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.kit.need import need_tool
from tests.kit.testing_root import newer

VERSIONS: Final = ("installed", "testing")
both = pytest.mark.parametrize("version", VERSIONS)
# Each interface's packets are conversations of their own: Wireshark 4.2 and later
BY_INTERFACE: Final = ("-o", "protocols.conversation_deinterlacing_key:.MI")
PATIENCE: Final = 60.0  # seconds


def tshark(version: str, path: Path, *options: str) -> list[str]:
    """The lines that it prints of the capture at `path`; other files only beside that."""
    start = newer("tshark", path.parent) if version == "testing" else (need_tool("tshark"),)
    done = subprocess.run(
        [*start, "-n", "-r", str(path), *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "Running as user" not in line]
    assert (complaints, done.returncode) == ([], 0)
    return done.stdout.splitlines()
