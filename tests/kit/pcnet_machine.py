"""QEMU machines that get a PCI card of ours by vfio-user, and a kernel that has its driver.

    with machine(folder, *card(folder / "card"), *booting(folder, script)) as running: ...

QEMU is Debian testing's (the installed one lacks vfio-user), the kernel Debian's for all machines
(the one for clouds lacks the driver).

Does not do: `slirp listen` (tests/qemu/test_machines.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from tests.kit.qemu import CACHE, GENERIC, PCNET_MODULES, Running, make_initramfs, need_kernel
from tests.kit.testing_root import newer

MEMORY: Final = 256  # MiB
ALLOWED: Final = 170.0  # seconds that a machine may take in all


def card(path: Path, **properties: object) -> tuple[str, str]:
    device = {
        "driver": "vfio-user-pci",
        "socket": {"path": str(path), "type": "unix"},
        **properties,
    }
    return "-device", json.dumps(device)


def machine(folder: Path, *arguments: str, seconds: float = ALLOWED) -> Running:
    """QEMU with memory that can be shared. It sees `folder`, and the kernels."""
    return Running(
        *newer("qemu-system-x86_64", folder, CACHE),
        *("-accel", "tcg", "-m", str(MEMORY), "-no-reboot", "-nodefaults"),
        *("-object", f"memory-backend-memfd,id=ram,size={MEMORY}M,share=on"),
        *("-machine", "q35,graphics=off,memory-backend=ram"),
        *("-display", "none", "-serial", "stdio", *arguments),
        seconds=seconds,
    )


def booting(folder: Path, script: str) -> tuple[str, ...]:
    """Debian's kernel with the driver, and a script."""
    (folder / "m").mkdir()
    initramfs = make_initramfs(folder / "m", script, PCNET_MODULES, GENERIC, ("ethtool",))
    return (
        *("-kernel", str(need_kernel(GENERIC).image), "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1"),
    )
