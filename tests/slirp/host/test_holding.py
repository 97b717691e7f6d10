"""What waits for a guest: it is asked for, and gets what was held, of whatever kind."""

from __future__ import annotations

import pytest

from slirp.ip.resolution import ASK_EVERY, HOLD_FOR
from tests.kit.clock import Clock
from tests.kit.guest import DNS, FIN, GATEWAY, GUEST, Lab, addr, arp, ether, ipv4, is_right, udp
from tests.kit.resolver import Resolver
from tests.slirp.host.conftest import MakeLab
from tests.slirp.host.test_dns import ask, resolvers, where
from tests.slirp.host.test_forward import client, forwarded, resolution

__all__ = ["resolvers"]  # a fixture


def forget(lab: Lab) -> None:
    """The guest's entry has gone, as a flood of others' addresses makes it go."""
    lab.network._stack.guests.forget_port(lab.attachment)


def test_an_answer_of_dns_waits(make_lab: MakeLab, resolvers: list[Resolver]) -> None:
    lab = make_lab(resolvers=where(resolvers[0]))
    ask(lab, "example.test")
    lab.turn()
    forget(lab)
    lab.turn(lambda: resolvers[0].pump() and bool(lab.guest.inbox))
    (answer,) = lab.guest.datagrams()
    assert (answer.src, answer.src_port, answer.dst_port) == (addr(DNS), 53, 40000)
    assert resolution(lab)["delivered"] == 1


def test_an_error_waits(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    lab.guest.give(ether(ipv4(bytes(64), 17, GATEWAY, ident=9, fragment=0x2000)))
    lab.turn()
    forget(lab)
    clock.advance(60)
    lab.turn(lambda: bool(lab.guest.inbox))
    assert is_right(lab.guest.inbox[0]).src == addr(GATEWAY)
    (message,) = lab.guest.icmps()
    assert (message.type, message.code) == (11, 1)


def test_nobody_is_told_of_what_the_network_itself_could_not_say(make_lab: MakeLab) -> None:
    clock = Clock()
    lab = make_lab(clock=clock)
    lab.guest.answers_arp = False
    lab.guest.give(ether(ipv4(bytes(64), 17, GATEWAY, ident=9, fragment=0x2000)))
    lab.turn()
    forget(lab)
    clock.advance(60)
    for _ in range(int(HOLD_FOR / ASK_EVERY) + 1):
        lab.turn()
        clock.advance(ASK_EVERY)
    lab.turn()
    assert {frame[12:14] for frame in lab.guest.inbox} == {b"\x08\x06"}, "nothing but requests"
    assert resolution(lab)["unreachable"] == 1


@pytest.mark.parametrize("frame", ["arp", "ip"])
def test_any_frame_of_the_guests_shows_where_it_is(frame: str, make_lab: MakeLab) -> None:
    """And what waited for it, of both kinds, goes on in the order in which it came."""
    lab = make_lab()
    lab.guest.answers_arp = False
    streams = lab.guest.listen(8080)
    with client(forwarded(lab)) as peer:
        lab.turn(lambda: resolution(lab)["waiting"] == 1)
        lab.guest.give(arp(1, GUEST, GATEWAY) if frame == "arp" else udp(b"x", DNS, 9))
        lab.turn(lambda: bool(streams))
        peer.sendall(b"early")
        assert streams[0].receive(5) == b"early"


def test_a_peer_that_has_left_meanwhile(make_lab: MakeLab) -> None:
    lab = make_lab()
    lab.guest.answers_arp = False
    streams = lab.guest.listen(8080)
    with client(forwarded(lab)) as peer:
        peer.sendall(b"bye")
        lab.turn(lambda: resolution(lab)["waiting"] == 1)
    lab.guest.give(arp(1, GUEST, GATEWAY))
    lab.turn(lambda: bool(streams) and streams[0].got_fin)
    assert streams[0].received == b"bye"
    assert streams[0].segments[-1].flags & FIN


def test_who_waits_when_the_network_ends_leaves_nothing(make_lab: MakeLab) -> None:
    """The fixture looks for descriptors that are left."""
    lab = make_lab()
    lab.guest.answers_arp = False
    with client(forwarded(lab)) as peer:
        lab.turn(lambda: resolution(lab)["waiting"] == 1)
        lab.network.close()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
