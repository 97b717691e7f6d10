"""Machines that boot from the network: iPXE, in QEMU's cards, fetches kernel and initramfs.

Nothing of the machine is on a disk or on QEMU's command line: firmware and iPXE ask DHCP what to
boot, and everything comes from the gateway, by TFTP or by HTTP. What is booted is Debian's kernel
and the initramfs of tests/kit/qemu.py, whose own DHCP client then gets the same address.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.need import need_file, need_tool
from tests.kit.qemu import (
    Running,
    make_initramfs,
    need_ipxe,
    need_kernel,
    sharing,
    vhost_user,
)
from tests.qemu.test_machines import listening

pytestmark = pytest.mark.xdist_group("qemu")  # one machine's emulation fills a core

MAC = "52:54:00:12:34:56"
SCRIPT = """\
#!ipxe
echo iPXE runs ${{filename}} of ${{net0/next-server}}
kernel {root}linux console=ttyS0 quiet panic=-1
initrd {root}initramfs
boot
"""


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    need_kernel()


def folder_with(tmp_path: Path, root: str) -> Path:
    """What the gateway serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    (tmp_path / "m").mkdir()
    shutil.copy(need_kernel().image, folder / "linux")
    script = "echo booted; cat /proc/cmdline; ip -4 addr show eth0"
    make_initramfs(tmp_path / "m", script).rename(folder / "initramfs")
    (folder / "boot.ipxe").write_text(SCRIPT.format(root=root))
    return folder


def boot(path: Path, kind: str) -> Running:
    """A machine with nothing but a network card."""
    card = f"virtio-net-pci,netdev=n0,mac={MAC}"
    line: list[str] = []
    netdev = f"stream,id=n0,addr.type=unix,addr.path={path}"
    if kind == "vhost-user":
        line += sharing(256)
        netdev = vhost_user(f"vhost-user,path={path}", line)
        card += ",vectors=0"
    return Running(
        need_tool("qemu-system-x86_64"), "-accel", "tcg", "-m", "256", "-no-reboot", "-nodefaults",
        "-machine", "pc,graphics=off", "-display", "none", "-serial", "stdio", "-boot", "n",
        *line, "-netdev", netdev, "-device", card,
    )  # fmt: skip


def booted(
    tmp_path: Path, *options: str, kind: str = "stream"
) -> tuple[str, dict[str, dict[str, int]]]:
    path = tmp_path / "net"
    where = ("--vhost-user", str(path)) if kind == "vhost-user" else (f"unix:{path}",)
    with listening(*options, "--stats", *where) as server:
        with boot(path, kind) as machine:
            output = machine.finish()
        assert server.end() == 0
    assert "booted\n" in output, output
    assert "console=ttyS0 quiet panic=-1" in output
    assert "inet 10.0.2.15/24" in output
    return output, json.loads(server.said.splitlines()[-1])


def test_ipxe_boots_a_kernel_by_tftp(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "tftp://${net0/next-server}/")
    output, stats = booted(tmp_path, "--tftp", str(folder), "--bootfile", "boot.ipxe")
    assert "iPXE runs boot.ipxe of 10.0.2.2" in output
    assert stats["tftp"]["finished"] == 3
    assert "http" not in stats


@pytest.mark.parametrize("kind", ["stream", "vhost-user"])
def test_ipxe_boots_a_kernel_by_http(tmp_path: Path, kind: str) -> None:
    """No TFTP server: the bootfile's name becomes a URL, and iPXE's own paths lead from there.

    Over vhost-user one machine has two drivers, first one without offloads and then Linux's.
    """
    folder = folder_with(tmp_path, "")
    bootfile = ("--bootfile", "ipxe=boot.ipxe")
    output, stats = booted(tmp_path, "--http", str(folder), *bootfile, kind=kind)
    assert "iPXE runs http://10.0.2.2/boot.ipxe" in output
    assert stats["http"]["requests"] >= 3
    assert stats["http"]["octets"] > need_kernel().image.stat().st_size
    assert "tftp" not in stats


UEFI = "/usr/share/OVMF/OVMF_CODE_4M.fd"  # Debian's package ovmf
UEFI_SETTINGS = "/usr/share/OVMF/OVMF_VARS_4M.fd"
UEFI_FOR = 180.0  # seconds: it takes 40 on a machine that has nothing else to do


def test_uefi_boots_by_http(tmp_path: Path) -> None:
    """OVMF fetches iPXE from the gateway, and iPXE its script: nobody asks for TFTP."""
    folder, path = tmp_path / "served", tmp_path / "net"
    folder.mkdir()
    settings = shutil.copy(need_file(UEFI_SETTINGS), tmp_path / "settings")
    shutil.copy(need_ipxe(), folder / "ipxe.efi")
    (folder / "boot.ipxe").write_text("#!ipxe\necho script of ${filename} runs\nreboot\n")
    files = ("--bootfile", "efi-x64=ipxe.efi", "--bootfile", "ipxe=boot.ipxe")
    pxe_off = [
        word
        for family in "46"
        for word in ("-fw_cfg", f"name=opt/org.tianocore/IPv{family}PXESupport,string=n")
    ]
    with (
        listening("--http", str(folder), *files, "--stats", f"unix:{path}") as server,
        Running(
            need_tool("qemu-system-x86_64"), "-accel", "tcg", "-m", "256", "-no-reboot",
            "-machine", "q35", "-nodefaults", "-display", "none", "-serial", "stdio",
            "-drive", f"if=pflash,format=raw,readonly=on,file={need_file(UEFI)}",
            "-drive", f"if=pflash,format=raw,file={settings}",
            "-netdev", f"stream,id=n0,addr.type=unix,addr.path={path}",
            "-device", f"virtio-net-pci,netdev=n0,mac={MAC},romfile=",
            "-device", "virtio-rng-pci", *pxe_off,
            seconds=UEFI_FOR,
        ) as machine,
    ):  # fmt: skip
        output = machine.finish()
        assert server.end() == 0
    assert "UEFI HTTPv4" in output
    assert "script of http://10.0.2.2/boot.ipxe runs" in output
    stats = json.loads(server.said.splitlines()[-1])
    assert stats["http"]["octets"] > need_ipxe().stat().st_size
    assert stats["refused"].get("protocol", 0) == 0
