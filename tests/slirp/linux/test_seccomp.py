"""The filter of system calls, in processes that may be spoilt."""

from __future__ import annotations

import sys

import pytest

from slirp.errors import ConfigError
from slirp.linux import seccomp
from tests.kit.need import missing
from tests.slirp.linux.test_sandbox import in_process, who

__all__ = ["who"]  # the fixture


def test_filter_refuses_and_lets_through(who: tuple[str, ...]) -> None:
    if not seccomp.seccomp_available():
        missing("neither seccomp nor pyseccomp is installed")
    program = """
import os, socket
from slirp.linux import seccomp, syscalls
calls = seccomp.seccomp_loader()()
assert {"execve", "ptrace", "mount", "kexec_load", "bpf"} <= set(calls)
for forbidden in (
    lambda: os.execv("/bin/true", ["true"]),
    lambda: syscalls.unshare(syscalls.CLONE_NEWUSER),
    lambda: syscalls.mount("x", "/", "tmpfs"),
    lambda: os.pidfd_open(os.getpid()),
):
    try:
        forbidden()
    except PermissionError:
        print("refused")
socket.create_server(("127.0.0.1", 0)).close()
"""
    assert in_process(program, who).split() == ["refused"] * 4


def test_every_refused_call_is_known() -> None:
    if not seccomp.seccomp_available():
        missing("neither seccomp nor pyseccomp is installed")
    names = " ".join(seccomp.REFUSED_CALLS).split()
    program = "from slirp.linux import seccomp; print(*seccomp.seccomp_loader()())"
    assert in_process(program).split() == names
    assert len(set(names)) == len(names)


def test_filter_without_a_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seccomp", "pyseccomp"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not seccomp.seccomp_available()
    assert seccomp.seccomp_version() is None
    with pytest.raises(ConfigError, match="apt-get install python3-seccomp"):
        seccomp.seccomp_loader()
