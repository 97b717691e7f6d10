"""How `slirp qemu` and its machine are joined: what QEMU can do, and the fastest of it that suits.

In order, each with what it is faster for:

    vhost-user   the machine's memory is shared: frames of 64 KiB, no copies
    stream       many frames per system call, each with its length in front; QEMU 7.2
    dgram        a frame, a system call; QEMU 7.2
    socket       the same bytes as stream, for any QEMU

vhost-user asks for more than the others: a virtio device, the machine's memory in a file that both
map, a socket that QEMU opens by its path. Where the command line says that one of these is not so,
or something that these are known to disturb, it is left out and the reason is said. Nothing is
changed in what the user wrote: a memory backend is used if it is shared, and no other one is added.

QEMU is asked, not guessed at: its version, and its list of kinds (`-netdev help`), both at once. A
program that is no QEMU (sudo, a script that enters a container) says no version, and gets what goes
through such programs best: a descriptor.

Does not do: read QEMU's own files of options (-readconfig), which only leave vhost-user out.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

VHOST_USER: Final = "vhost-user"
STREAM: Final = "stream"
DGRAM: Final = "dgram"
SOCKET: Final = "socket"
AUTO: Final = "auto"
WAYS: Final = (VHOST_USER, STREAM, DGRAM, SOCKET)  # the fastest first

NETDEV: Final = "slirp0"
VIRTIO: Final = "virtio-net"
DEVICE: Final = "virtio-net-pci"
MSIX: Final = (8, 0)  # before it, vhost-user and MSI-X without KVM end QEMU
NEW: Final = (7, 2)  # has stream and dgram; vhost-user is tested from here on
ANSWERS_FOR: Final = 10.0  # seconds that QEMU may take to say what it can do

# Machines that have 128 MiB where no -m says otherwise; others have what they like.
_USUAL_MEMORY: Final = re.compile(r"qemu-system-(x86_64|i386|aarch64|arm|riscv\d\d)\b")
# Options that a shared memory backend or a second process is known to disturb.
_DISTURBED: Final = (
    "-mem-path", "-mem-prealloc", "-numa", "-readconfig", "-incoming", "-loadvm", "-replay",
    "-xen-domid",
)  # fmt: skip
_DISTURBED_WORDS: Final = ("memory.size=", "confidential-guest-support=", "accel=xen", "rr=")


class Qemu(NamedTuple):
    """What a program says of itself."""

    name: str  # for people
    version: tuple[int, int] | None  # None: it does not say
    kinds: Collection[str] | None  # of -netdev; None: it does not say

    def has(self, way: str) -> bool:
        """Can it do this? Where it does not say: by its version."""
        if self.version is not None and self.version < NEW and way in (STREAM, DGRAM):
            return False
        return self.kinds is None or way in self.kinds


class Choice(NamedTuple):
    """What was chosen, and why nothing faster was."""

    way: str
    why: str


class NoWay(Exception):
    """This QEMU cannot be joined to a network like this."""


def ask(program: str) -> Qemu:
    """Ask QEMU what it is and what it can do; what cannot be asked is left to it to say."""
    version, kinds = _answers([program, "--version"], [program, "-netdev", "help"])
    found = re.search(r"QEMU emulator version (\d+)\.(\d+)", version)
    if found is None:
        return Qemu(os.path.basename(program), None, None)
    number = int(found[1]), int(found[2])
    listing = kinds.partition(":\n")[2].split() if "netdev" in kinds else None
    return Qemu(f"QEMU {number[0]}.{number[1]}", number, listing)


def _answers(*commands: list[str]) -> list[str]:
    """What these print, run beside each other."""
    running: list[subprocess.Popen[str] | None] = []
    for command in commands:
        try:
            running.append(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True, errors="replace", process_group=0,
                )
            )  # fmt: skip
        except OSError:
            running.append(None)
    return [_answer(process) for process in running]


def _answer(process: subprocess.Popen[str] | None) -> str:
    if process is None:
        return ""
    try:
        return process.communicate(timeout=ANSWERS_FOR)[0]
    except subprocess.TimeoutExpired:  # a script has started a machine all the same?
        with contextlib.suppress(PermissionError):  # sudo
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return ""


def choose(wanted: str, device: str, argv: Sequence[str], qemu: Qemu) -> Choice:
    """The way that was asked for, or the fastest. Raises NoWay."""
    if any(re.search(rf"^(?!.*\bnetdev\b).*\bid\W+{NETDEV}\b", word) for word in argv):
        raise NoWay(f"the id {NETDEV} is the network's own; give yours another")
    if wanted != AUTO:
        if not qemu.has(wanted):
            raise NoWay(f"{argv[0]} is {qemu.name}, which has no -netdev {wanted}")
        return Choice(wanted, "as asked")
    why = next(obstacles(device, argv, qemu), "")
    if not why:
        return Choice(VHOST_USER, "the fastest")
    for way in WAYS[1:]:
        if qemu.has(way):
            return Choice(way, why)
    raise NoWay(f"{argv[0]} is {qemu.name}, which has none of -netdev {', '.join(WAYS)}")


def obstacles(device: str, argv: Sequence[str], qemu: Qemu) -> Iterator[str]:
    """What stands in the way of vhost-user."""
    if qemu.version is None:
        yield f"{qemu.name} does not say what it can do"
    elif qemu.version < NEW:
        yield f"{qemu.name} is older than {NEW[0]}.{NEW[1]}"
    elif qemu.kinds is None or VHOST_USER not in qemu.kinds:
        yield f"this {qemu.name} has no vhost-user"
    own = own_device(argv)
    model = own or device
    if own.startswith(DEVICE) and "vectors=0" not in own and lacks_msix(argv, qemu.version):
        yield f"{qemu.name} without KVM takes a {DEVICE} with vectors=0 for it"
    if not model.startswith(VIRTIO):
        named = model.partition(",")[0]
        yield f"{named} is no {VIRTIO} device" if named != "none" else "no device is named"
    yield from _disturbed(argv)
    if has_memory(argv):
        yield from _unshared(argv)
    elif not any(word in ("-m", "--m") for word in argv) and not _USUAL_MEMORY.search(argv[0]):
        yield "no -m says how much memory is to be shared"


def lacks_msix(argv: Sequence[str], version: tuple[int, int] | None) -> bool:
    """Would vhost-user with MSI-X end this QEMU?"""
    has_kvm = any(re.search(r"\bkvm\b", word) for word in argv)
    return version is not None and version < MSIX and not has_kvm


def own_device(argv: Sequence[str]) -> str:
    """The command line's own device for this network; empty: it has none."""
    for word in argv:
        if re.search(rf"\bnetdev\b\W+{NETDEV}\b", word):
            driver = re.search(r"\"driver\"\s*:\s*\"([^\"]*)\"|\bdriver=([^,]*)", word)
            return (driver[1] or driver[2] or "") if driver else word
    return ""


def has_memory(argv: Sequence[str]) -> bool:
    """Does the command line have a memory backend of its own?"""
    return any("memory-backend" in word or "memdev=" in word for word in argv)


def _disturbed(argv: Sequence[str]) -> Iterator[str]:
    for word in argv:
        option = word if not word.startswith("--") else word[1:]
        if option in _DISTURBED and not (option == "-numa" and has_memory(argv)):
            yield f"{option} is given"
        yield from (f"{given.rstrip('=')} is given" for given in _DISTURBED_WORDS if given in word)


def _unshared(argv: Sequence[str]) -> Iterator[str]:
    """Memory backends that only QEMU has: those of files and of plain RAM, if they are not told."""
    for option, value in pairwise(argv):
        kind = re.search(r"memory-backend-(\w+)", value)
        if option not in ("-object", "--object") or kind is None:
            continue
        told = re.search(r"\bshare\b\W+(\w+)", value)
        is_shared = told[1] in ("on", "true", "yes") if told else kind[1] in ("memfd", "shm")
        if not is_shared:
            yield f"the memory of memory-backend-{kind[1]} is not shared (share=on)"
