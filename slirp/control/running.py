"""The networks that run on this machine, found by looking at processes.

A network is a process whose command line is `slirp run`, `attach`, `listen` or `qemu`, or
`slirp4netns-py`; its control socket, if it has one, is named by its options and answers `status`.
Nothing is registered anywhere, so nothing can be stale, and a network without a control socket is
found as well.

Does not do: processes that may not be looked at (other users' without privilege, other process
namespaces); networks inside other Python programs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from slirp.control.client import Connection, ControlError, Unreachable

COMMANDS: Final = ("run", "attach", "listen", "qemu")
PROGRAMS: Final = ("slirp", "slirp4netns-py")
MODULES: Final = ("slirp", "slirp.cli.main", "slirp.cli.slirp4netns")
SUCCESSOR: Final = "slirp.cli.successor"  # goes on in another process's place; its socket follows
LISTENING: Final = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix
PATIENCE: Final = 1.0  # seconds for an answer


class Running(NamedTuple):
    """One network."""

    pid: int
    command: str
    control: str | None  # the path of its control socket
    status: dict[str, Any] | None  # what it says of itself


def running() -> list[Running]:
    """All that can be seen, by process id."""
    listeners = _listeners()
    found = {pid: words for pid in _pids() if (words := _words(pid)) and _is_network(words)}
    # Helpers that a network forked have its command line; the oldest of them is the network.
    looked = [
        _look(pid, words, listeners)
        for pid, words in sorted(found.items())
        if found.get(_parent(pid)) != words
    ]
    # Who has handed its network over may still wait for its command: another answers at its socket.
    seen = {one.pid for one in looked}
    return [
        one
        for one in looked
        if one.status is None or one.status["pid"] == one.pid or one.status["pid"] not in seen
    ]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _words(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _is_network(words: list[str]) -> bool:
    """`python …/slirp run`, `python -m slirp run`, `python …/slirp4netns-py …`."""
    if not os.path.basename(words[0]).startswith(("python", "pypy", *PROGRAMS)):
        return False
    for at, word in enumerate(words[:8]):
        is_program = os.path.basename(word) in PROGRAMS
        is_module = at > 0 and words[at - 1] == "-m" and word in MODULES
        if _is_successor(words, at):
            return True
        if is_program or is_module:
            if "slirp4netns" in word:
                return not {"--help", "--version", "-h", "-v"} & set(words[at:])
            return words[at + 1 : at + 2] != [] and words[at + 1] in COMMANDS
    return False


def _is_successor(words: list[str], at: int) -> bool:
    """`-m slirp.cli.successor SOCKET`, `ctl SOCKET handover --foreground`: from this word on."""
    if words[at] == SUCCESSOR:
        return words[at - 1] == "-m" and at + 1 < len(words)
    return (
        words[at] == "ctl" and "handover" in words[at + 2 :] and "--foreground" in words[at + 2 :]
    )


def _listeners() -> dict[int, str]:
    """Listening Unix sockets: inode → path."""
    found = {}
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            words = line.split(maxsplit=7)
            if len(words) == 8 and words[0] != "Num" and int(words[3], 16) & LISTENING:
                found[int(words[6])] = words[7].rstrip("\n")
    return found


def _look(pid: int, words: list[str], listeners: dict[int, str]) -> Running:
    path = _control_of(pid, words, listeners)
    if path is not None:
        try:
            with Connection(path, patience=PATIENCE) as network:
                status = _believed(network.ask("status"))
                succeeds = any(_is_successor(words, at) for at in range(len(words)))
                command = status["name"] if succeeds else _command(words)
                return Running(pid, command, path, status)
        except (Unreachable, ControlError):  # another's by now, or not for us
            pass
        except (LookupError, TypeError):  # whatever that is, anybody may be called like this
            pass
    return Running(pid, _command(words), None, None)


def _believed(status: Any) -> dict[str, Any]:
    """Raises LookupError or TypeError for what no network says."""
    for name, kind in (("pid", int), ("name", str), ("up", int | float)):
        if not isinstance(status[name], kind):
            raise TypeError(name)
    found: dict[str, Any] = status
    return found


def _control_of(pid: int, words: list[str], listeners: dict[int, str]) -> str | None:
    """The path of its control socket, as its options name it. No other socket of it is touched:
    to connect to one may be to be a machine."""
    for at in range(len(words)):
        if _is_successor(words, at):
            return words[at + 1]
    named = _option(words, "--control")
    if named is None or named.startswith("/"):
        return named
    try:  # from a folder that is its own; the kernel remembers where it was bound
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return None
    inodes = {int(link[8:-1]) for link in links if link.startswith("socket:[")}
    own = (path for inode, path in listeners.items() if inode in inodes)
    return next((path for path in own if path.endswith("/" + os.path.normpath(named))), None)


def _option(words: list[str], name: str) -> str | None:
    """An option's value, `--name VALUE` or `--name=VALUE`, before a `--`."""
    found = None
    for at, word in enumerate(words):
        if word == "--":
            break
        if word == name and at + 1 < len(words):
            found = words[at + 1]
        elif word.startswith(name + "="):
            found = word[len(name) + 1 :]
    return found


def _command(words: list[str]) -> str:
    """Without the interpreter."""
    for at, word in enumerate(words):
        if os.path.basename(word) in PROGRAMS:
            return " ".join([os.path.basename(word), *words[at + 1 :]])
        if word in MODULES and words[at - 1] == "-m":
            return " ".join(["slirp" if word != MODULES[2] else PROGRAMS[1], *words[at + 1 :]])
    return " ".join(words)
