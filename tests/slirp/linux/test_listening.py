"""Who listens, by sockets of the test's own process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from slirp.linux import listening
from slirp.linux.listening import Namespace, listeners, program_at, program_of
from tests.kit.need import missing
from tests.kit.ports import free_port


def found(port: int) -> set[tuple[str, bytes]]:
    return {(one.proto, one.addr) for one in listeners(os.getpid()) if one.port == port}


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_streams_that_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert found(port) == {("tcp", b"\x7f\0\0\1")}
        (one,) = (one for one in listeners(os.getpid()) if one.port == port)
        assert one.inode == inode(sock)
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert found(client.getsockname()[1]) == set()
    assert found(port) == set()


def test_every_address() -> None:
    with socket.create_server(("", 0)) as sock:
        assert found(sock.getsockname()[1]) == {("tcp", bytes(4))}
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        assert found(sock.getsockname()[1]) == {("tcp", bytes(15) + b"\1")}


def test_datagrams_below_the_ephemeral_ports() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
        expected = {("udp", b"\x7f\0\0\1")} if port < listening.EPHEMERAL_MIN else set()
        assert found(port) == expected
        sock.connect(("127.0.0.1", 9))
        assert found(port) == set()  # a client's


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(FileNotFoundError):
        listeners(process.pid)


def test_programs_by_name() -> None:
    if listening._psutil() is None:
        missing("psutil is not installed")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert program_of(inode(sock)).endswith(f" ({os.getpid()})")
        assert program_at("tcp", sock.getsockname()[1]).endswith(f" ({os.getpid()})")
        assert program_at("udp", sock.getsockname()[1]) == ""
    assert program_of(1) == ""


def test_without_psutil_nobody_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_psutil", lambda: None)
    assert program_of(1) == program_at("tcp", 1) == ""


def test_a_namespace_has_some_process() -> None:
    namespace = Namespace(os.stat("/proc/self/ns/net").st_ino)
    pid = namespace.pid()
    assert pid is not None
    assert namespace.pid() == pid
    assert Namespace(1).pid() is None
