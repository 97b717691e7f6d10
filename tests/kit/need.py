"""What a test needs of the machine: `need_tool("tshark")`, `need_netns()` …

Where it is missing the test is skipped with the reason; where CI=true it fails instead, because a
suite that skips is a suite that stopped judging. Each returns what was asked for, where that is a
thing (the path of a tool).

Does not do: install anything (the Makefile does).
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
from typing import NoReturn

import pytest

ADMIN_PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not in an ordinary user's PATH


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"true", "1"}


def missing(reason: str) -> NoReturn:
    """Skip the running test, or fail it under continuous integration."""
    if in_ci():
        pytest.fail(f"missing under CI: {reason}", pytrace=False)
    pytest.skip(reason)


def need_tool(name: str) -> str:
    """The path of a program."""
    path = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *ADMIN_PATHS)))
    if path is None:
        missing(f"{name} is not installed")
    return path


def need_file(path: str) -> str:
    if not os.path.exists(path):
        missing(f"{path} is not there")
    return path


def need_root() -> None:
    if os.geteuid() != 0:
        missing("only root can do this")


@functools.cache
def _unshare_error(*options: str) -> str:
    result = subprocess.run(
        ["unshare", *options, "true"], capture_output=True, text=True, timeout=20, check=False
    )
    return result.stderr.strip() if result.returncode else ""


def need_netns() -> None:
    """A network namespace of one's own: with a user namespace, as an ordinary user has it."""
    need_tool("unshare")
    error = _unshare_error("--user", "--map-root-user", "--net", "--mount")
    if error:
        missing(f"no user and network namespaces: {error}")


def need_tun() -> None:
    """TAP devices inside a namespace of one's own."""
    need_netns()
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing(f"/dev/net/tun: {error.strerror}")


def need_ipv6() -> str:
    """The host's IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        missing(f"no IPv6 on the host's loopback: {error.strerror}")
    return "::1"
