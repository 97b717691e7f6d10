"""Forwards that come and go: what is opened, what is told, and what is left alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp import Network
from slirp.autoforward import parse_auto
from slirp.control import auto
from slirp.control.auto import AutoForward
from slirp.linux.listening import Listener
from tests.kit.ports import free_port

GUEST = "10.0.2.100"
EVERYWHERE, LOOPBACK = bytes(4), bytes((127, 0, 0, 1))


class Scene:
    """A network, and what listens in its namespace."""

    def __init__(self, rules: str = "auto", **options: list[str]) -> None:
        self.network = Network(resolvers=[], **options)  # type: ignore[arg-type]  # lists of text
        self.found: list[Listener] = []
        self.pid: int | None = 1
        self.said: list[str] = []
        self.now = 0.0
        self.auto = AutoForward(
            self.network, GUEST, parse_auto(rules), lambda: self.pid, self.said.append, self.look
        )

    def look(self, pid: int) -> list[Listener]:
        return self.found

    def listen(self, port: int, addr: bytes = EVERYWHERE, proto: str = "tcp") -> None:
        self.found.append(Listener(proto, addr, port, 1))

    def turn(self) -> dict[int, int]:
        """A second passes: host port by the guest's."""
        self.now += 1.0
        assert self.auto.handle_timeout(self.now) == self.now + auto.LOOK_EVERY
        out = {}
        for forward in self.network.forwards():
            assert isinstance(forward.host, tuple)
            assert forward.guest[0] == GUEST
            out[forward.guest[1]] = forward.host[1]
        return out


@pytest.fixture(autouse=True)
def nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "program_of", lambda inode: "server (7)" if inode == 1 else "")
    monkeypatch.setattr(auto, "program_at", lambda proto, port: "apache2 (88)")


@pytest.fixture
def scene() -> Iterator[Scene]:
    found = Scene()
    yield found
    found.network.close()


def test_what_comes_and_goes(scene: Scene) -> None:
    port = free_port()
    assert scene.turn() == {}
    scene.listen(port)
    assert scene.turn() == {port: port}
    assert scene.turn() == {port: port}
    assert scene.said == [f"forward 127.0.0.1:{port}:{GUEST}:{port} for server (7)"]
    scene.found.clear()
    assert scene.turn() == {}
    assert scene.said[1:] == [f"forward to port {port}/tcp ended: nobody listens"]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_gets_another_and_keeps_it(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scene.listen(port)
        other = scene.turn()[port]
        assert other != port
        assert scene.said == [
            f"forward 127.0.0.1:{other}:{GUEST}:{port} for server (7): "
            f"port {port} is taken by apache2 (88)"
        ]
        scene.found.clear()
        assert scene.turn() == {}
        scene.listen(port)
        assert scene.turn() == {port: other}


def test_both_protocols(scene: Scene) -> None:
    port = free_port()
    scene.listen(port)
    scene.listen(port, proto="udp")
    scene.turn()
    assert {forward.proto for forward in scene.network.forwards()} == {"tcp", "udp"}


def test_what_cannot_be_reached_is_told_once(scene: Scene) -> None:
    port = free_port()
    scene.listen(port, LOOPBACK)
    assert scene.turn() == scene.turn() == {}
    assert scene.said == [
        f"port {port}/tcp is not forwarded: server (7) listens on the namespace's loopback only"
    ]
    scene.listen(port, bytes((10, 0, 2, 100)))  # and now on the guest's address as well
    scene.found.reverse()
    scene.auto._passed_over.clear()
    assert scene.turn() == {port: port}


def test_rules() -> None:
    port = free_port()
    scene = Scene(f"auto:!{port}")
    scene.listen(port)
    assert scene.turn() == {}
    scene.network.close()


def test_what_is_forwarded_anyhow_is_left_alone() -> None:
    port, other = free_port(), free_port()
    scene = Scene(forwards=[f"{other}:{GUEST}:{port}"])
    scene.listen(port)
    assert scene.turn() == {port: other}
    scene.found.clear()
    assert scene.turn() == {port: other}
    scene.network.close()


def test_the_bound(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "FORWARDS_MAX", 1)
    first, second = free_port(), free_port()
    scene.listen(first)
    scene.listen(second)
    assert scene.turn() == scene.turn() == {first: first}
    assert scene.said[1:] == [f"port {second}/tcp is not forwarded: 1 are"]


def test_a_namespace_that_ends(scene: Scene) -> None:
    port = free_port()
    scene.listen(port)
    assert scene.turn() == {port: port}
    scene.pid = None
    assert scene.turn() == {}


def test_the_end(scene: Scene) -> None:
    scene.listen(free_port())
    scene.turn()
    scene.auto.close()
    assert scene.network.forwards() == []


def test_they_are_marked_and_not_saved(scene: Scene, tmp_path: Path) -> None:
    """A state that is restored has the ones that somebody asked for."""
    port, own = free_port(), free_port()
    scene.network.forward(f"{own}:{GUEST}:80")
    scene.listen(port)
    scene.turn()
    marks = {forward.guest[1]: forward.automatic for forward in scene.network.forwards()}
    assert marks == {80: False, port: True}
    assert scene.network.save(tmp_path / "state")["forwards"] == 1
    for forward in scene.network.forwards():
        scene.network.remove_forward(forward.id)
    with Network(resolvers=[]) as restored:
        restored.restore(tmp_path / "state")
        assert [forward.guest[1] for forward in restored.forwards()] == [80]


def test_those_of_a_process_before_this_one_go_on(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        scene.listen(port)
        chosen = scene.turn()
    scene.auto = AutoForward(
        scene.network, GUEST, parse_auto("auto"), lambda: 1, scene.said.append, scene.look
    )
    assert scene.turn() == chosen
    scene.found.clear()
    assert scene.turn() == {}
    scene.listen(port)
    assert scene.turn() == chosen, "it has the port that it had"
