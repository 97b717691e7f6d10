"""Who listens in a network namespace, and who has a port of the host's.

`listeners(pid)` reads the kernel's tables of that process's namespace (proc(5), /proc/PID/net/tcp
and its sisters): TCP sockets that listen, UDP sockets that are bound and connected to nobody. That
is a few small files, so it can be asked every second. Names of programs take a walk through /proc;
it is psutil's, is made where a name is to be told, and left out where psutil is not installed.

UDP ports from EPHEMERAL_MIN on are left out: most are a client's that waits for an answer.

Does not do: other namespaces' processes by name, sockets of other protocols.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

EPHEMERAL_MIN: Final = 32768  # ip_local_port_range, ip(7)
TABLE_MAX: Final = 1 << 20  # bytes that are read of one table
LISTEN: Final = "0A"  # net/tcp_states.h
UNCONNECTED: Final = "07"
TABLES: Final = (("tcp", LISTEN), ("tcp6", LISTEN), ("udp", UNCONNECTED), ("udp6", UNCONNECTED))


class Listener(NamedTuple):
    proto: str  # "tcp" or "udp"
    addr: bytes  # 4 or 16 bytes
    port: int
    inode: int  # of its socket


class Namespace:
    """A network namespace, by the inode of its file, and some process in it."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self._pid = 0

    def pid(self) -> int | None:
        """A process that is in it; None where there is none that can be seen."""
        if not self._has(self._pid):
            pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())
            self._pid = next((pid for pid in pids if self._has(pid)), 0)
        return self._pid or None

    def _has(self, pid: int) -> bool:
        try:
            return os.stat(f"/proc/{pid}/ns/net").st_ino == self.inode
        except OSError:
            return False


def listeners(pid: int) -> list[Listener]:
    """Those of the process's namespace. Raises OSError where the process is gone."""
    os.stat(f"/proc/{pid}/net")
    return [found for table, state in TABLES for found in _listeners(pid, table, state)]


def _listeners(pid: int, table: str, state: str) -> Iterator[Listener]:
    try:
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            lines = file.read(TABLE_MAX).splitlines()[1:]
    except FileNotFoundError:  # a kernel without IPv6
        return
    for line in lines:
        words = line.split()
        if len(words) < 10 or words[3] != state:
            continue
        addr, port = _end(words[1])
        if table.startswith("udp") and (port >= EPHEMERAL_MIN or set(words[2]) - set("0:")):
            continue
        yield Listener(table[:3], addr, port, int(words[9]))


def _end(word: str) -> tuple[bytes, int]:
    """`0F02000A:0050`: words of 32 bits in the machine's order."""
    text, _, port = word.partition(":")
    cuts = range(0, len(text), 8)
    addr = b"".join(int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in cuts)
    return addr, int(port, 16)


def program_of(inode: int) -> str:
    """The program that has this socket, as "nginx (4711)"; empty where nobody can tell."""
    psutil = _psutil()
    link = f"socket:[{inode}]"
    for process in psutil.process_iter(["name"]) if psutil is not None else ():
        folder = f"/proc/{process.pid}/fd"
        try:
            if any(os.readlink(f"{folder}/{fd}") == link for fd in os.listdir(folder)):
                return _called(process)
        except OSError:  # it has ended, or may not be looked at
            continue
    return ""


def program_at(proto: str, port: int) -> str:
    """The program that has this port on the host, in the same form."""
    psutil = _psutil()
    if psutil is None:
        return ""
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    try:
        for found in psutil.net_connections("inet"):
            taken = found.laddr and found.laddr.port == port and not found.raddr
            if taken and found.type == kind and found.pid is not None:
                return _called(psutil.Process(found.pid))
    except psutil.Error:
        pass
    return ""


def _called(process: Any) -> str:
    return f"{process.name()} ({process.pid})"


def _psutil() -> Any:
    try:
        import psutil
    except ImportError:
        return None
    return psutil
