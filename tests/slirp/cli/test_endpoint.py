"""Where machines connect: what is opened, who may, what is in the way, what is left."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slirp.cli.endpoint import Endpoint, Renewable, open_endpoint
from slirp.cli.failure import Failure

Open = Callable[..., Endpoint]


@pytest.fixture
def opened() -> Iterator[Open]:
    """`open_endpoint`, whose sockets are closed at the end."""
    endpoints: list[Endpoint] = []

    def opened(text: str, allow_remote: bool = False) -> Endpoint:
        endpoints.append(open_endpoint(text, allow_remote=allow_remote))
        return endpoints[-1]

    yield opened
    for endpoint in endpoints:
        endpoint.sock.close()


def refused(text: str) -> str:
    with pytest.raises(Failure) as failure:
        open_endpoint(text)
    return str(failure.value)


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


@pytest.mark.parametrize("kind", ["unix", "dgram"])
def test_a_path_is_for_its_owner(tmp_path: Path, opened: Open, kind: str) -> None:
    path = tmp_path / "net"
    before = os.umask(0)
    try:
        endpoint = opened(f"{kind}:{path}")
    finally:
        os.umask(before)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert (endpoint.listens, endpoint.is_datagram) == (kind == "unix", kind == "dgram")
    endpoint.remove()
    assert not path.exists()
    endpoint.remove()


def test_the_umask_stays(tmp_path: Path, opened: Open) -> None:
    before = os.umask(0o22)
    opened(f"unix:{tmp_path}/net")
    assert os.umask(before) == 0o22


@pytest.mark.parametrize("kind", ["unix", "dgram"])
def test_a_socket_that_nobody_answers_at_is_replaced(
    tmp_path: Path, opened: Open, kind: str
) -> None:
    open_endpoint(f"{kind}:{tmp_path}/net").sock.close()  # as a crash leaves it
    assert (tmp_path / "net").exists()
    opened(f"{kind}:{tmp_path}/net")


@pytest.mark.parametrize("before", ["unix", "dgram"])
@pytest.mark.parametrize("after", ["unix", "dgram"])
def test_a_socket_in_use_is_left_alone(
    tmp_path: Path, opened: Open, before: str, after: str
) -> None:
    path = tmp_path / "net"
    opened(f"{before}:{path}")
    inode = path.stat().st_ino
    assert "another program answers" in refused(f"{after}:{path}")
    assert path.stat().st_ino == inode


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("letters")
    assert "no socket" in refused(f"unix:{tmp_path}/net")
    assert (tmp_path / "net").read_text() == "letters"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path, opened: Open) -> None:
    open_endpoint(f"unix:{tmp_path}/other").sock.close()
    (tmp_path / "net").symlink_to(tmp_path / "other")
    assert "no socket" in refused(f"unix:{tmp_path}/net")
    assert (tmp_path / "other").exists()


def test_what_another_put_there_is_not_removed(tmp_path: Path, opened: Open) -> None:
    endpoint = opened(f"unix:{tmp_path}/net")
    (tmp_path / "net").rename(tmp_path / "moved")
    opened(f"unix:{tmp_path}/net")
    endpoint.remove()
    assert (tmp_path / "net").exists()


def test_a_datagram_socket_may_name_its_machine(tmp_path: Path, opened: Open) -> None:
    endpoint = opened(f"dgram:{tmp_path}/net,{tmp_path}/qemu")
    assert endpoint.path == f"{tmp_path}/net"
    assert endpoint.peer == f"{tmp_path}/qemu"


def test_a_datagram_socket_is_renewed_at_its_path(tmp_path: Path, opened: Open) -> None:
    """Who has connected keeps the old one; whoever comes finds the new one."""
    endpoint = opened(f"dgram:{tmp_path}/net")
    assert endpoint.made is not None
    path = Renewable(endpoint.made)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second,
    ):
        first.connect(endpoint.path)
        with path.renew() as renewed:
            second.connect(endpoint.path)
            first.send(b"first")
            second.send(b"second")
            assert (endpoint.sock.recv(100), renewed.recv(100)) == (b"first", b"second")
            assert stat.S_IMODE((tmp_path / "net").stat().st_mode) == 0o600
            assert os.listdir(tmp_path) == ["net"]
    path.remove()
    assert os.listdir(tmp_path) == []


def test_a_path_that_another_has_taken_is_not_renewed(tmp_path: Path, opened: Open) -> None:
    made = opened(f"dgram:{tmp_path}/net").made
    assert made is not None
    path = Renewable(made)
    (tmp_path / "net").rename(tmp_path / "moved")
    opened(f"dgram:{tmp_path}/net")
    inode = (tmp_path / "net").stat().st_ino
    with pytest.raises(FileExistsError):
        path.renew()
    path.remove()
    assert (tmp_path / "net").stat().st_ino == inode


@pytest.mark.parametrize("host", ["", ":", "127.0.0.1:", "localhost:", "127.5.5.5:"])
def test_a_port_of_the_loopback(opened: Open, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = port_of(sock)
    endpoint = opened(f"tcp:{host}{port}")
    assert endpoint.listens
    assert endpoint.sock.getsockname()[0].startswith("127.")


@pytest.mark.parametrize(
    "text", ["tcp:0.0.0.0:7000", "tcp:192.0.2.1:7000", "udp:7000,192.0.2.1:7000"]
)
def test_other_hosts_only_when_that_is_meant(text: str) -> None:
    assert "--allow-remote" in refused(text)


def test_other_hosts_when_that_is_meant(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = port_of(sock)
    endpoint = opened(f"tcp:0.0.0.0:{port}", allow_remote=True)
    assert endpoint.sock.getsockname() == ("0.0.0.0", port)


def test_udp_hears_nobody_but_its_machine(opened: Open) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as machine,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        ours.bind(("127.0.0.1", 0))
        port = port_of(ours)
        ours.close()
        machine.bind(("127.0.0.1", 0))
        endpoint = opened(f"udp:{port},{port_of(machine)}")
        assert endpoint.is_datagram
        stranger.sendto(b"stranger", ("127.0.0.1", port))
        machine.sendto(b"machine", ("127.0.0.1", port))
        assert endpoint.sock.recv(100) == b"machine"


def test_a_port_in_use(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert "in use" in refused(f"tcp:{port_of(sock)}")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_descriptor(opened: Open, kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    endpoint = opened(f"fd:{ours.detach()}")
    assert not endpoint.listens
    assert endpoint.is_datagram is (kind == socket.SOCK_DGRAM)
    assert not endpoint.sock.getblocking()
    theirs.close()


def test_a_descriptor_that_listens(opened: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert opened(f"fd:{os.dup(sock.fileno())}").listens


def test_a_descriptor_that_is_no_socket() -> None:
    reader, writer = os.pipe()
    assert "no open socket" in refused(f"fd:{reader}")
    os.close(reader)  # still open: it was not ours
    os.close(writer)
    assert "no open socket" in refused("fd:999")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert "neither" in refused(f"fd:{ours.fileno()}")


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "unix", "unix:", "unix:" + "x" * 108, "dgram:", "tcp:", "tcp:0", "tcp:65536",
        "tcp:-1", "tcp:example:80", "tcp:1.2.3:80", "tcp:[::1]:80", "udp:7000", "udp:7000,",
        "udp:,7000", "fd:", "fd:x", "fd:-1", "/tmp/net", "http://x", "vsock:1:2",
    ],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    said = refused(text)
    assert said.startswith(f"{text}: ")
    assert "\n" not in said
