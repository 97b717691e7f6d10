"""Guest to host: to an address, a Unix socket, a command; and what is told where there is none."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from slirp.errors import ConfigError
from slirp.host import guestforward
from tests.kit.guest import ACK, DNS, GATEWAY, GUEST, PSH, Lab, addr, arp, icmp
from tests.slirp.host.conftest import MakeLab

OWN = "10.0.2.100"
PLACES = [OWN, GATEWAY, "192.0.2.80"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("restrict", [False, True])
def test_to_an_address(
    place: str, restrict: bool, make_lab: MakeLab, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    lab = make_lab(guest_forwards=[f"{place}:80=127.0.0.1:{port}"], restrict=restrict)
    stream = lab.guest.connect((place, 80))
    peer, _ = listener.accept()
    with peer:
        stream.send(b"question")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        assert stream.receive(6) == b"answer"
    lab.turn(lambda: stream.got_fin)


def test_to_a_unix_socket(make_lab: MakeLab, tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    lab = make_lab(guest_forwards=[f":5000={path}"])
    refused = lab.guest.open((GATEWAY, 5000))
    lab.turn()
    assert refused.got_reset
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        stream = lab.guest.connect((GATEWAY, 5000))
        peer, _ = server.accept()
        with peer:
            stream.send(b"x" * 100_000)
            got = b""
            while len(got) < 100_000:
                got += peer.recv(65536)
                lab.turn()
            peer.sendall(b"thanks")
            assert stream.receive(6) == b"thanks"


def test_to_a_command(make_lab: MakeLab) -> None:
    lab = make_lab(guest_forwards=[f"{OWN}:7=cmd:sh -c 'echo hello; exec tr a-z A-Z'"])
    first, second = (lab.guest.connect((OWN, 7)) for _ in range(2))
    for stream in (first, second):
        assert stream.receive(6) == b"hello\n"
    first.send(b"one")
    second.send(b"two")
    first.finish()
    assert first.receive(3) == b"ONE"
    lab.turn(lambda: first.got_fin)
    second.finish()
    assert second.receive(3) == b"TWO"
    lab.turn(lambda: second.got_fin)
    lab.turn(lambda: not commands(lab))


def commands(lab: Lab) -> list[int]:
    found = lab.network._own._guest_forwards
    assert found is not None
    return [process.pid for process in found._commands.values()]


def test_a_command_ends_with_the_network(make_lab: MakeLab) -> None:
    """Also where signals are blocked, as the commands do that read them from a descriptor."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        lab = make_lab(guest_forwards=[f"{OWN}:7=cmd:sleep 1000"])
        lab.guest.connect((OWN, 7))
        (pid,) = commands(lab)
        lab.network.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_commands_are_bounded(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestforward, "COMMANDS_MAX", 2)
    lab = make_lab(guest_forwards=[f"{OWN}:7=cmd:cat"])
    streams = [lab.guest.open((OWN, 7)) for _ in range(3)]
    lab.turn()
    assert [stream.got_reset for stream in streams] == [False, False, True]
    assert lab.network.stats()["guest_forwards"] == {"refused": 1}


def test_a_command_that_is_not_there(make_lab: MakeLab) -> None:
    lab = make_lab(guest_forwards=[f"{OWN}:7=cmd:/nowhere/at/all"])
    stream = lab.guest.open((OWN, 7))
    lab.turn()
    assert stream.got_reset


def test_an_address_of_the_networks_own(make_lab: MakeLab) -> None:
    """Answers ARP and echoes; its other ports are closed, and no guest gets it."""
    lab = make_lab(guest_forwards=[f"{OWN}:7=cmd:cat"])
    (reply,) = lab.exchange(arp(1, GUEST, OWN))
    assert reply[28:32] == addr(OWN)
    lab.guest.give(icmp(8, 0, 1, b"ping", OWN))
    lab.turn()
    assert [message.type for message in lab.guest.icmps()] == [0]
    stream = lab.guest.open((OWN, 8))
    lab.turn()
    assert stream.got_reset
    other = lab.add_guest(OWN, b"\x02other")  # who claims it is not believed
    other.give(arp(1, OWN, GATEWAY, sender_mac=b"\x02other"))
    lab.turn()
    assert lab.network._stack.guests.get(addr(OWN)) is None


def test_other_ports_of_the_gateway_are_the_hosts_still(
    make_lab: MakeLab, listener: socket.socket
) -> None:
    lab = make_lab(guest_forwards=[":5000=/nowhere"])
    stream = lab.guest.connect((GATEWAY, listener.getsockname()[1]))
    peer, _ = listener.accept()
    with peer:
        stream.put(ACK | PSH, b"x")
        lab.turn()
        assert peer.recv(1) == b"x"


def test_what_is_taken_is_refused(make_lab: MakeLab) -> None:
    with pytest.raises(ConfigError):
        make_lab(guest_forwards=[f"{DNS}:53=/x"])
