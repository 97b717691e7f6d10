"""Which processes a flow belongs to: the program in the guests' namespace, and the host's.

Found by whoever asks, not by the network: it takes a walk through /proc, and a network in a sandbox
sees none of it. The program on the host's side is known where the connection stays on this host
(the gateway's address, mostly). psutil does the walking; it is imported here and nowhere else.

    with_owners(flows, namespace_pid)     adds "guest_owner" and "host_owner": "curl (4711)" or None

Does not do: containers' names, processes of other users without the right to look.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

Ends: TypeAlias = tuple[str, str]  # local and remote, as ADDR:PORT


class NoPsutil(Exception):
    """psutil is not installed."""


def with_owners(flows: Iterable[dict[str, Any]], namespace_pid: int | None) -> None:
    """Add the owners to each flow, in place. Raises NoPsutil."""
    try:
        import psutil
    except ImportError:
        raise NoPsutil("owners of flows need psutil: pip install 'slirp[owners]'") from None
    host = _of_host(psutil)
    guests = _of_namespace(psutil, namespace_pid)
    for flow in flows:
        flow["host_owner"] = host.get((flow["host_remote"] or "", flow["host_local"] or ""))
        flow["guest_owner"] = guests.get((flow["guest"], flow["remote"] or "")) or guests.get(
            (flow["guest"], "")
        )


def _of_host(psutil: Any) -> dict[Ends, str]:
    try:
        connections = psutil.net_connections("inet")
    except psutil.Error:
        return {}
    found = {}
    for connection in connections:
        if connection.pid is not None and connection.raddr:
            try:
                name = psutil.Process(connection.pid).name()
            except psutil.Error:
                continue
            found[_text(connection.laddr), _text(connection.raddr)] = f"{name} ({connection.pid})"
    return found


def _of_namespace(psutil: Any, pid: int | None) -> Mapping[Ends, str]:
    """Sockets of the processes in this one's network namespace.

    psutil reads the tables of its own namespace; theirs are at /proc/PID/net.
    """
    ends = dict(_sockets_of(pid)) if pid is not None else {}
    found: dict[Ends, str] = {}
    for process in psutil.process_iter() if ends else ():
        try:
            folder = f"/proc/{process.pid}/fd"
            links = {os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
            for link in links & ends.keys():
                found[ends[link]] = f"{process.name()} ({process.pid})"
        except (OSError, psutil.Error):  # it has ended, or may not be looked at
            continue
    return found


def _sockets_of(pid: int) -> Iterator[tuple[str, Ends]]:
    """Each socket of a process's namespace, as its descriptors' links name it: its ends."""
    for table in ("tcp", "udp", "tcp6", "udp6"):
        try:
            with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            remote = "" if set(words[2]) <= set("0:") else _end(words[2])
            yield f"socket:[{words[9]}]", (_end(words[1]), remote)


def _end(word: str) -> str:
    """`0F02000A:0050`, words of 32 bits in the machine's order, as ADDR:PORT."""
    addr, _, port = word.partition(":")
    octets = b"".join(
        int(addr[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(addr), 8)
    )
    family = socket.AF_INET if len(octets) == 4 else socket.AF_INET6
    return _joined(socket.inet_ntop(family, octets), int(port, 16))


def _text(end: Any) -> str:
    return _joined(end.ip, end.port)


def _joined(addr: str, port: int) -> str:
    addr = addr.removeprefix("::ffff:")
    return f"[{addr}]:{port}" if ":" in addr else f"{addr}:{port}"
