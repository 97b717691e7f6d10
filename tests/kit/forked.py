"""Run a piece of a test in a network namespace of its own, in a child process.

    in_namespace(lambda: ping_something())

The child has loopback up and ELSEWHERE on it, an address that is not loopback's and reachable; it
has no routes. What it raises is raised here, as text.
"""

from __future__ import annotations

import os
import subprocess
import traceback
from collections.abc import Callable

from slirp.linux import netns, syscalls
from tests.kit.need import need_netns, need_tool

ELSEWHERE = "192.0.2.1"  # TEST-NET-1, RFC 5737


def in_namespace(body: Callable[[], None]) -> None:
    """Fails with the child's traceback."""
    need_netns()
    ip = need_tool("ip")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            netns.unshare_as_anyone(syscalls.CLONE_NEWNET, map_root=True)
            netns.bring_loopback_up()
            subprocess.run([ip, "addr", "add", f"{ELSEWHERE}/32", "dev", "lo"], check=True)
            body()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as report:
        text = report.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, text
