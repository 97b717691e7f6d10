"""QEMU machines that the tests boot: Debian's kernel, Debian's busybox, nothing of ours inside.

The kernel comes from Debian's package for virtual machines, or the one for all machines
(`GENERIC`), downloaded once by apt-get into build/cache and unpacked there (nothing is installed).
The initial RAM file system is busybox, the modules that the network card needs, and an /init that
loads them, brings eth0 up by udhcpc and runs the test's script. What the script prints comes out of
the serial port, which is the machine's standard output. The machine is emulated (no KVM) and takes
two to four seconds to its script.

QEMU is the one that is installed, or the newest from Debian testing (`qemu="testing"`).

    machine = Machine(tmp_path, "wget -qO- http://10.0.2.2:8000/ | sha256sum", netdev)
    assert digest in machine.finish()

Does not do: architectures other than x86-64.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import lzma
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from tests.kit.need import missing, need_tool
from tests.kit.testing_root import newer

CACHE: Final = Path(__file__).parent.parent.parent / "build/cache/qemu"
METAPACKAGE: Final = "linux-image-cloud-amd64"
GENERIC: Final = "linux-image-amd64"
DOWNLOAD_FOR: Final = 300.0  # seconds
BOOT_FOR: Final = 90.0  # seconds that a machine may take in all; two cores may be shared by many
MEMORY: Final = 192  # MiB
# In the order in which each finds the symbols that it needs.
MODULES: Final = (
    "failover",
    "net_failover",
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_net",
)
PCNET_MODULES: Final = ("mii", "pcnet32")

INIT: Final = """\
#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {modules}; do [ ! -e /m/$module.ko ] || insmod /m/$module.ko; done
ip link set lo up; ip link set eth0 up
udhcpc -f -i eth0 -s /dhcp -O mtu -n -q -t 10 -T 1 > /dev/null 2>&1 || echo no lease
sh /script 2>&1
echo; echo machine ends; poweroff -f
"""
# What udhcpc calls with each lease.
DHCP: Final = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
[ -z "$mtu" ] || ip link set $interface mtu $mtu
ip addr add $ip/$mask dev $interface
[ -z "$router" ] || ip route add default via $router
for server in $dns; do echo nameserver $server; done > /etc/resolv.conf
echo lease $ip mtu $mtu
"""


class Kernel(NamedTuple):
    image: Path
    modules: Path  # the folder that modules are somewhere under


@functools.cache
def need_kernel(metapackage: str = METAPACKAGE) -> Kernel:
    """Debian's kernel, downloaded if it has not been."""
    need_tool("qemu-system-x86_64")
    need_tool("cpio")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers, one download
        found = _unpacked(metapackage)
        if found is None:
            _download(metapackage)
            found = _unpacked(metapackage)
    if found is None:
        missing(f"no kernel in Debian's {metapackage}")
    return found


def _folder(metapackage: str) -> Path:
    return CACHE / ("kernel" if metapackage == METAPACKAGE else metapackage)


def _unpacked(metapackage: str) -> Kernel | None:
    folder = _folder(metapackage)
    images = sorted(folder.glob("boot/vmlinuz-*"))
    return Kernel(images[-1], folder / "lib/modules") if images else None


def _download(metapackage: str) -> None:
    apt = need_tool("apt-get")
    name = _package(metapackage)
    for leftover in CACHE.glob("*.deb"):
        leftover.unlink()
    _run(apt, "download", name)
    (package,) = CACHE.glob("*.deb")
    half = CACHE / "kernel.new"
    shutil.rmtree(half, ignore_errors=True)
    _run(need_tool("dpkg-deb"), "-x", str(package), str(half))
    half.rename(_folder(metapackage))
    package.unlink()


@functools.cache
def need_ipxe() -> Path:
    """Debian's iPXE for UEFI, downloaded if it has not been."""
    CACHE.mkdir(parents=True, exist_ok=True)
    found = CACHE / "ipxe/boot/ipxe.efi"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            _run(need_tool("apt-get"), "download", "ipxe")
            (package,) = CACHE.glob("ipxe_*.deb")
            _run(need_tool("dpkg-deb"), "-x", str(package), str(CACHE / "ipxe"))
            package.unlink()
    return found if found.exists() else missing("no boot/ipxe.efi in Debian's ipxe")


def _package(metapackage: str) -> str:
    """The package that the metapackage stands for today."""
    query = (need_tool("apt-cache"), "depends", metapackage)
    listing = _run(*query, check=False)
    if "linux-image-" not in listing.partition("\n")[2] and os.geteuid() == 0:
        _run(need_tool("apt-get"), "update", "-qq")
        listing = _run(*query, check=False)
    match = re.search(r"Depends: (linux-image-\S+)", listing)
    return match[1] if match else missing(f"apt knows no {metapackage}")


def _run(*command: str, check: bool = True) -> str:
    result = subprocess.run(
        command, cwd=CACHE, capture_output=True, text=True, timeout=DOWNLOAD_FOR, check=False
    )
    if check and result.returncode:
        missing(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def make_initramfs(
    folder: Path,
    script: str,
    modules: Sequence[str] = MODULES,
    metapackage: str = METAPACKAGE,
    tools: Sequence[str] = (),
) -> Path:
    """The file system that runs `script`, as a cpio archive; `tools` of this machine are in it."""
    root = folder / "root"
    for name in ("bin", "m", "proc", "sys", "dev", "etc", "tmp", "www"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(need_tool("busybox"), root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    for tool in tools:
        _add_program(root, need_tool(tool))
    for name in modules:
        for path in need_kernel(metapackage).modules.rglob(f"{name}.ko*"):
            data = path.read_bytes()
            data = lzma.decompress(data) if path.suffix == ".xz" else data
            (root / f"m/{name}.ko").write_bytes(data)
    (root / "init").write_text(INIT.format(modules=" ".join(modules)))
    (root / "dhcp").write_text(DHCP.replace("echo lease", "> /dev/console echo lease"))
    (root / "script").write_text(script)
    for name in ("init", "dhcp"):
        (root / name).chmod(0o755)
    archive = folder / "initramfs"
    with archive.open("wb") as out:
        names = "\n".join(str(p.relative_to(root)) for p in sorted(root.rglob("*")))
        subprocess.run(
            [need_tool("cpio"), "-o", "-H", "newc", "--quiet"],
            cwd=root, input=names.encode(), stdout=out, check=True, timeout=60,
        )  # fmt: skip
    return archive


def _add_program(root: Path, program: str) -> None:
    """A program and the libraries that it is linked with."""
    shutil.copy(program, root / "bin")
    for library in re.findall(r"/\S+", _run(need_tool("ldd"), program)):
        place = root / library.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)


def command_line(
    folder: Path, script: str, memory: int = MEMORY, qemu: str = "installed"
) -> list[str]:
    """QEMU's command line without a network. The newer one sees the folder in which `folder` is."""
    kernel = need_kernel()
    program = (
        newer("qemu-system-x86_64", folder.parent, CACHE)
        if qemu == "testing"
        else (need_tool("qemu-system-x86_64"),)
    )
    return [
        *program,
        *("-accel", "tcg", "-m", str(memory), "-no-reboot", "-nodefaults"),
        *("-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel.image), "-initrd", str(make_initramfs(folder, script))),
        *("-append", "console=ttyS0 quiet panic=-1"),
    ]


def sharing(memory: int) -> list[str]:
    """What puts the machine's memory into a file that can be shared."""
    backend = f"memory-backend-memfd,id=ram,size={memory}M,share=on"
    return ["-object", backend, "-machine", "memory-backend=ram"]


def vhost_user(netdev: str, line: list[str]) -> str:
    """`vhost-user,path=…` as QEMU has it: with its socket a device of its own, added to `line`."""
    words = netdev.split(",")[1:]
    chardev = [word for word in words if word.startswith(("path=", "reconnect"))]
    line += ["-chardev", ",".join(("socket", "id=c0", *chardev))]
    return ",".join(("vhost-user", "id=n0", "chardev=c0", *(w for w in words if w not in chardev)))


class Running:
    """QEMU with this command line. End it with `finish`, or use it in a `with` statement."""

    def __init__(self, *command: str, seconds: float = BOOT_FOR) -> None:
        """`seconds`: that it may take in all."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        self._seen = b""
        self._deadline = time.monotonic() + seconds

    def expect(self, text: str) -> str:
        """Wait until the machine has printed `text`: all it has printed."""
        for seen in self._readings():
            if text in seen:
                return seen
        raise AssertionError(f"no {text!r} in what the machine printed:\n{self._text()}")

    def finish(self) -> str:
        """Wait until the machine has ended: all it has printed."""
        for _ in self._readings():
            pass
        assert self.process.wait(10) is not None
        return self._text()

    def seen(self) -> str:
        """What it has printed so far."""
        while select.select([self._output], [], [], 0)[0]:
            data = os.read(self._output, 65536)
            if not data:
                break
            self._seen += data
        return self._text()

    def _readings(self) -> Iterator[str]:
        yield self._text()
        while True:
            left = self._deadline - time.monotonic()
            if not select.select([self._output], [], [], max(0.0, left))[0]:
                raise AssertionError(f"the machine did not end in time:\n{self._text()}")
            data = os.read(self._output, 65536)
            if not data:
                return
            self._seen += data
            yield self._text()

    def _text(self) -> str:
        return self._seen.decode(errors="replace").replace("\r", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            assert self.process.stdout is not None
            self.process.stdout.close()


class Machine(Running):
    """A machine that boots `script`."""

    def __init__(
        self,
        folder: Path,
        script: str,
        netdev: str,
        *,
        mac: str = "52:54:00:12:34:56",
        memory: int = MEMORY,
        qemu: str = "installed",
        device: str = "",
        cpus: int = 1,
        who: tuple[str, ...] = (),
        extra: tuple[str, ...] = (),
    ) -> None:
        folder.mkdir(exist_ok=True)
        network: list[str] = ["-smp", str(cpus)] if cpus > 1 else []
        if netdev.startswith("vhost-user,"):
            network += sharing(memory)
            netdev = vhost_user(netdev, network)
        if netdev:
            properties = f"netdev=n0,mac={mac}" + (f",{device}" if device else "")
            network += ["-netdev", netdev, "-device", f"virtio-net-pci,{properties}"]
        super().__init__(*who, *command_line(folder, script, memory, qemu), *network, *extra)
