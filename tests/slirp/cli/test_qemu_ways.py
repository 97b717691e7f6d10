"""How `slirp qemu` and QEMU are joined: by what QEMU says, and by its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from slirp.cli import qemu_ways
from slirp.cli.qemu_ways import AUTO, WAYS, Choice, NoWay, Qemu, ask, choose

ALL = ("socket", "stream", "dgram", "hubport", "tap", "user", "vhost-user")
NEW = Qemu("QEMU 11.1", (11, 1), ALL)
OLD = Qemu("QEMU 7.2", (7, 2), ALL)
PROGRAM = "/usr/bin/qemu-system-x86_64"
DEVICE = "virtio-net-pci"
FASTEST = Choice("vhost-user", "the fastest")


def chosen(line: str = "", qemu: Qemu = NEW, device: str = DEVICE, wanted: str = AUTO) -> Choice:
    return choose(wanted, device, [PROGRAM, *line.split()], qemu)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-m 1G -cdrom debian.iso",
        "-device e1000,netdev=other",
        "-device virtio-net-pci,netdev=slirp0,mac=52:54:00:00:00:01",
        """-device {"driver":"virtio-net-pci","netdev":"slirp0"}""",
        "-object memory-backend-memfd,id=m,size=1G -machine memory-backend=m",
        "-object memory-backend-shm,id=m,size=1G -machine memory-backend=m",
        "-object memory-backend-file,id=m,mem-path=/x,share=on -machine memory-backend=m",
        """-object {"qom-type":"memory-backend-file","id":"m","share":true}""",
        "-object memory-backend-ram,id=m,share=on,size=1G -numa node,memdev=m",
        "-netdev user,id=other -enable-kvm",
    ],
)
def test_the_fastest_where_nothing_stands_in_its_way(line: str) -> None:
    assert chosen(line) == FASTEST


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("-device e1000,netdev=slirp0", "e1000 is no virtio-net device"),
        ("""-device {"driver":"rtl8139","netdev":"slirp0"}""", "rtl8139 is no virtio-net device"),
        ("-object memory-backend-ram,id=m,size=1G -machine memory-backend=m",
         "the memory of memory-backend-ram is not shared (share=on)"),
        ("-object memory-backend-file,id=m,mem-path=/x -machine memory-backend=m",
         "the memory of memory-backend-file is not shared (share=on)"),
        ("-object memory-backend-memfd,id=m,share=off -machine memory-backend=m",
         "the memory of memory-backend-memfd is not shared (share=on)"),
        ("-mem-path /dev/hugepages", "-mem-path is given"),
        ("-numa node,nodeid=0", "-numa is given"),
        ("--readconfig x.cfg", "-readconfig is given"),
        ("-incoming defer", "-incoming is given"),
        ("-loadvm before", "-loadvm is given"),
        ("-machine q35,confidential-guest-support=sev0", "confidential-guest-support is given"),
    ],
)  # fmt: skip
def test_what_stands_in_its_way(line: str, why: str) -> None:
    assert chosen(line) == Choice("stream", why)


def test_devices_that_are_no_virtio_ones() -> None:
    assert chosen(device="e1000,mac=52:54:00:00:00:01").why == "e1000 is no virtio-net device"
    assert chosen(device="none") == Choice("stream", "no device is named")
    assert chosen("-device virtio-net-pci,netdev=slirp0", device="none") == FASTEST


def test_how_much_memory_is_known() -> None:
    """Other machines than a PC have other defaults, which a memory backend would replace."""
    for program, way in (("qemu-system-ppc64", "stream"), ("qemu-system-i386", "vhost-user")):
        assert choose(AUTO, DEVICE, [program], NEW).way == way
    assert choose(AUTO, DEVICE, ["qemu-system-ppc64", "-m", "1G"], NEW) == FASTEST


def test_an_old_qemu_and_a_device_with_msix() -> None:
    own = "-device virtio-net-pci,netdev=slirp0"
    assert chosen(qemu=OLD) == FASTEST  # with a device of ours, which has none
    why = "QEMU 7.2 without KVM takes a virtio-net-pci with vectors=0 for it"
    assert chosen(own, OLD) == Choice("stream", why)
    assert chosen(f"{own},vectors=0", OLD) == FASTEST
    assert chosen(f"{own} -accel kvm", OLD) == FASTEST


@pytest.mark.parametrize(
    ("version", "kinds", "way", "why"),
    [
        ((11, 1), ("socket", "stream", "dgram"), "stream", "this QEMU 11.1 has no vhost-user"),
        ((11, 1), ("socket", "dgram"), "dgram", "this QEMU 11.1 has no vhost-user"),
        ((11, 1), ("socket", "user"), "socket", "this QEMU 11.1 has no vhost-user"),
        ((11, 1), None, "stream", "this QEMU 11.1 has no vhost-user"),
        ((7, 1), ALL, "socket", "QEMU 7.1 is older than 7.2"),
        ((2, 5), None, "socket", "QEMU 2.5 is older than 7.2"),
    ],
)
def test_what_qemu_can_do(
    version: tuple[int, int], kinds: tuple[str, ...] | None, way: str, why: str
) -> None:
    qemu = Qemu(f"QEMU {version[0]}.{version[1]}", version, kinds)
    assert chosen(qemu=qemu) == Choice(way, why)


def test_what_is_asked_for_is_had_or_refused() -> None:
    for way in WAYS:
        assert chosen("-numa node", wanted=way) == Choice(way, "as asked")
    with pytest.raises(NoWay, match="which has no -netdev stream"):
        chosen(qemu=Qemu("QEMU 7.1", (7, 1), None), wanted="stream")
    with pytest.raises(NoWay, match="which has none of -netdev vhost-user, stream"):
        chosen(qemu=Qemu("QEMU 11.1", (11, 1), ("user",)))
    with pytest.raises(NoWay, match="the id slirp0 is the network's own"):
        chosen("-netdev user,id=slirp0")


SCRIPTS = {
    "a QEMU": (
        "[ $1 = --version ] && echo QEMU emulator version 9.2.0 || "
        "printf 'Available netdev backend types:\\nsocket\\nstream\\n'",
        Qemu("QEMU 9.2", (9, 2), ["socket", "stream"]),
    ),
    "one that lists nothing": (
        "[ $1 = --version ] && echo 'QEMU emulator version 2.5.0 (Debian)' || exit 1",
        Qemu("QEMU 2.5", (2, 5), None),
    ),
    "another program": ("echo Sudo version 1.9.13", Qemu("program", None, None)),
    "one that fails": ("exit 1", Qemu("program", None, None)),
    "one that says no letters": ("printf '\\377'", Qemu("program", None, None)),
}


@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_programs_are_asked(tmp_path: Path, script: str, expected: Qemu) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert ask(str(program)) == expected


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    assert ask(str(tmp_path / "missing")) == Qemu("missing", None, None)


def test_a_script_that_starts_a_machine_whatever_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up with what it has started, which would hold our pipe, and its own disks."""
    monkeypatch.setattr(qemu_ways, "ANSWERS_FOR", 0.5)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n(sleep 20; echo >{tmp_path}/$1) & wait\n")
    program.chmod(0o755)
    assert ask(str(program)) == Qemu("program", None, None)
    assert list(tmp_path.iterdir()) == [program], "a machine ran to its end"


def test_another_program_gets_a_descriptor() -> None:
    assert chosen(qemu=Qemu("sudo", None, None)) == Choice(
        "stream", "sudo does not say what it can do"
    )
