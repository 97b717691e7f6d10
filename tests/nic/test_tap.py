"""TAP devices: what is negotiated, what is staged, and how they end. In namespaces of their own."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from dma.iovec import IoVec
from nic import tap
from nic.port import VNET_LEN, DeviceGone, Shortage
from nic.tap import TapPort, open_tap
from slirp.linux import netns, syscalls
from tests.kit.forked import in_namespace
from tests.kit.need import need_tun
from tests.kit.served import DEVICE, GATEWAY, GUEST

FRAME = b"\xff" * 6 + b"\x02abcde" + b"\x12\x34" + bytes(range(100))


@contextlib.contextmanager
def port(mtu: int = 1500, **options: bool) -> Iterator[TapPort]:
    """A configured device of this namespace."""
    fd, name = open_tap(DEVICE, vnet=options.get("vnet", True))
    assert name == DEVICE
    netns.configure(netns.Interface(DEVICE, GUEST, 24, GATEWAY, mtu))
    made = TapPort(fd, mtu=mtu, **options)
    try:
        yield made
    finally:
        made.close()


def in_a_namespace(body: Callable[[], None]) -> None:
    need_tun()
    in_namespace(body)


def readable(made: TapPort) -> bool:
    return bool(select.select([made.fileno()], [], [], 5)[0])


@pytest.mark.parametrize("vnet", [True, False])
@pytest.mark.parametrize("tso", [True, False])
def test_what_is_negotiated(vnet: bool, tso: bool) -> None:
    def body() -> None:
        with port(vnet=vnet, tso=tso) as made:
            assert made.offload == vnet
            assert bool(made.offloads & tap.TUN_F_CSUM) == vnet
            assert bool(made.offloads & tap.TUN_F_TSO4) == (vnet and tso)
            assert made.max_frame == (tap.FRAME_MAX if vnet and tso else 1514)

    in_a_namespace(body)


@pytest.mark.parametrize("vnet", [True, False])
def test_frames_from_the_guest(vnet: bool) -> None:
    """What the namespace's kernel sends, with the virtio-net header apart."""

    def body() -> None:
        import socket

        with port(vnet=vnet) as made, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(5):
                sock.sendto(b"datagram %d" % number, (GATEWAY, 9))
            kinds: list[str] = []
            while readable(made) and not kinds:
                for frame in made.frames():
                    octets = bytes(frame.iov)
                    assert len(frame.vnet) == VNET_LEN
                    frame.release()
                    if octets[12:14] == b"\x08\x06":
                        kinds.append("arp")
            assert kinds

    in_a_namespace(body)


@pytest.mark.parametrize("vnet", [True, False])
@pytest.mark.parametrize("headers", [(), (14,), (14, 20, 20)])
def test_a_frame_to_the_guest(vnet: bool, headers: tuple[int, ...]) -> None:
    """Filled piece by piece, committed as one; the claim's views are cut at the headers."""

    def body() -> None:
        import socket

        with (
            port(vnet=vnet) as made,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer,
        ):
            sniffer.bind((DEVICE, 0x1234))
            sniffer.settimeout(5)
            for size in (60, 114):
                claim = made.claim(1514, headers)
                assert claim is not None
                assert tuple(map(len, claim.iov.segments))[: len(headers)] == headers
                at = 0
                for view in claim.iov.segments:
                    part = FRAME[at : at + len(view)]
                    view[: len(part)] = part
                    at += len(view)
                claim.commit(size)
                assert sniffer.recv(2000) == FRAME[:size]
            assert made.sent == 2

    in_a_namespace(body)


def test_a_cancelled_claim_leaves_no_trace() -> None:
    def body() -> None:
        with port() as made:
            claim = made.claim(1514, (14, 20, 20))
            assert claim is not None
            claim.cancel()
            assert made.sent == made.dropped == 0

    in_a_namespace(body)


def test_a_frame_that_the_kernel_does_not_take_is_counted() -> None:
    def body() -> None:
        with port() as made:
            claim = made.claim(8)
            assert claim is not None
            claim.commit(8)  # shorter than an Ethernet header
            assert (made.sent, made.dropped) == (0, 1)

    in_a_namespace(body)


def test_a_claim_larger_than_the_device_takes_is_our_mistake() -> None:
    def body() -> None:
        with port(tso=False) as made:
            assert made.claim(1514) is not None
            with pytest.raises(ValueError, match="1515"):
                made.claim(1515)

    in_a_namespace(body)


def test_frames_are_bounded_and_valid_until_released() -> None:
    """All frames of one batch stay as they are while the batch lasts."""

    def body() -> None:
        import socket

        with port() as made, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((DEVICE, 0x1234))
            for number in range(200):
                sender.send(FRAME[:14] + number.to_bytes(2, "big") * 30)
            seen: list[int] = []
            for _ in range(100):
                held: list[IoVec] = []
                for frame in made.frames():
                    if bytes(frame.iov)[12:14] == b"\x12\x34":
                        held.append(frame.iov)
                assert len(held) <= tap.FRAMES_PER_CALL
                numbers = [int.from_bytes(bytes(iov)[14:16], "big") for iov in held]
                assert [bytes(iov)[14:16] * 30 for iov in held] == [
                    bytes(iov)[14:74] for iov in held
                ]
                seen += numbers
            assert seen == list(range(200))

    in_a_namespace(body)


def test_a_device_that_goes_away_says_so() -> None:
    def body() -> None:
        import subprocess

        with port() as made:
            subprocess.run(["ip", "link", "del", DEVICE], check=True)
            assert readable(made)
            with pytest.raises(DeviceGone, match="gone") as caught:
                list(made.frames())
            assert caught.value.errno == errno.EBADFD
            claim = made.claim(60)
            assert claim is not None
            claim.commit(60)  # lost, as on a wire; who asks for news is told
            with pytest.raises(DeviceGone):
                made.poll(0.0)

    in_a_namespace(body)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN])
def test_a_frame_that_meets_a_shortage_is_kept(number: int) -> None:
    """Nothing is lost, nothing overtakes it, and it leaves when there is memory again."""

    def body() -> None:
        written: list[bytes] = []
        short = 3

        def write(fd: int, data: bytes) -> int:
            nonlocal short
            if short:
                short -= 1
                raise OSError(number, os.strerror(number))
            written.append(bytes(data))
            return len(data)

        with port() as made, pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "writev", lambda fd, pieces: write(fd, b"".join(pieces)))
            patch.setattr(os, "write", write)
            for fill in (1, 2):
                claim = made.claim(60)
                if claim is None:
                    break
                claim.iov.copy_from(bytes((fill,)) * 60)
                claim.commit(60)
            assert made.claim(60) is None
            now = 0.0
            while (at := made.poll(now)) is not None:
                assert at > now
                now = at
            assert written == [bytes(VNET_LEN) + b"\1" * 60]
            assert made.shortages == 3
            assert made.dropped == 0
            assert made.claim(60) is not None

    in_a_namespace(body)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS])
def test_a_read_that_meets_a_shortage_is_no_end(number: int) -> None:
    def body() -> None:
        def read(fd: int, into: object) -> int:
            raise OSError(number, os.strerror(number))

        with port() as made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "readv", read)
                with pytest.raises(Shortage):
                    list(made.frames())
            assert made.poll(0.0) is None
            list(made.frames())

    in_a_namespace(body)


def test_a_device_keeps_its_namespace() -> None:
    """Whoever waits for the namespace's end has to watch its processes: the device stays."""

    def body() -> None:
        import socket

        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            fd, _ = open_tap(DEVICE)
            netns.configure(netns.Interface(DEVICE, GUEST, 24, GATEWAY, 1500))
            socket.send_fds(theirs, [b"!"], [fd])
            os._exit(0)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        os.waitpid(pid, 0)
        made = TapPort(fds[0])
        claim = made.claim(60)
        assert claim is not None
        claim.commit(60)
        assert made.sent == 1
        made.close()
        ours.close()
        theirs.close()

    in_a_namespace(body)


def test_names_and_rights() -> None:
    def body() -> None:
        fd, name = open_tap()
        assert name.startswith("tap")
        request = struct.pack("16sH22x", name.encode(), 0)
        assert len(request) == 40
        with pytest.raises(OSError, match="busy"):
            open_tap(name)
        os.close(fd)
        syscalls.drop_capabilities()
        with pytest.raises(PermissionError):
            open_tap("other")

    in_a_namespace(body)


@pytest.mark.parametrize("waits", [False, True])
def test_a_claim_that_is_held_keeps_its_area(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many others are made and are over meanwhile; and areas are used again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    made = TapPort(ours.fileno(), vnet=False)
    areas = set()
    with ours, theirs:
        for _ in range(3):
            held = []
            for letter in (b"a", b"b", b"c"):
                claim = made.claim(60, (14,))
                assert claim is not None
                later = claim.hold(lambda: None)
                areas.add(id(later.iov.segments[0].obj))
                later.iov.copy_from(letter * 60)
                held.append(later)
            between = made.claim(60, (14, 20))
            assert between is not None
            between.iov.copy_from(b"-" * 60)
            between.commit(60)
            held[1].commit(30)
            held[2].cancel()
            if waits:  # nothing overtakes a frame that the kernel had no memory for
                made._held = b"kept"
                with monkeypatch.context() as patch:
                    patch.setattr(made, "_retry", lambda: False)
                    held[0].commit(60)
                made._held = b""
            else:
                held[0].commit(60)
            frames = [theirs.recv(100) for _ in range(2 if waits else 3)]
            assert frames == [b"-" * 60, b"b" * 30, b"a" * 60][: len(frames)]
        assert made.dropped == (3 if waits else 0)
    assert len(areas) <= 4
