"""Signals by descriptor, in a process that may be spoilt."""

from __future__ import annotations

from tests.slirp.linux.test_syscalls import run_python


def test_signals_come_by_descriptor() -> None:
    """In a process without threads: another thread, which blocks nothing, would get the signal."""
    run_python(
        """
import os, select, signal
from slirp.linux.signals import SI_KERNEL, SignalFd
signals = SignalFd([signal.SIGUSR1, signal.SIGRTMAX])
assert list(signals.read()) == []
os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGRTMAX)
assert select.select([signals], [], [], 5)[0]
found = {number: (code, pid) for number, code, pid in signals.read()}
assert set(found) == {signal.SIGUSR1, signal.SIGRTMAX}
assert found[signal.SIGUSR1][1] == os.getpid()
assert found[signal.SIGUSR1][0] != SI_KERNEL
signals.close()
assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
    )
