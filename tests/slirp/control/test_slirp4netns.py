"""slirp4netns's control protocol: each reply as slirp4netns gives it, and no request that hurts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.control import slirp4netns as api
from slirp.network import Network

GUEST = "10.0.2.100"


class Entry(NamedTuple):
    id: int
    proto: str
    host: tuple[str, int] | str
    guest: tuple[str, int]


class Table:
    """Forwards that bind nothing."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def forward(self, proto: str, *, host: tuple[str, int], guest: tuple[str, int]) -> Entry:
        if any(entry.host == host for entry in self.entries.values()):
            raise OSError(98, "Address already in use")
        entry = Entry(len(self.entries) + 1, proto, host, guest)
        self.entries[entry.id] = entry
        return entry

    def remove_forward(self, number: int) -> bool:
        return self.entries.pop(number, None) is not None

    def forwards(self) -> list[Entry]:
        return list(self.entries.values())


def ask(request: Any, table: Table) -> Any:
    data = request if isinstance(request, bytes) else json.dumps(request).encode()
    return json.loads(api.answer(data, table, GUEST))


def add(**arguments: Any) -> dict[str, Any]:
    return {"execute": "add_hostfwd", "arguments": arguments}


def refusal(text: str) -> dict[str, Any]:
    return {"error": {"desc": f"bad request: {text}"}}


def test_add_list_remove() -> None:
    table = Table()
    request = add(proto="tcp", host_addr="127.0.0.1", host_port=8080, guest_port=80)
    assert ask(request, table) == {"return": {"id": 1}}
    request = add(proto="udp", host_port=8081, guest_addr="10.0.2.7", guest_port=81)
    assert ask(request, table) == {"return": {"id": 2}}
    entries = [
        {
            "id": 1,
            "proto": "tcp",
            "host_addr": "127.0.0.1",
            "host_port": 8080,
            "guest_addr": GUEST,
            "guest_port": 80,
        },
        {
            "id": 2,
            "proto": "udp",
            "host_addr": "0.0.0.0",
            "host_port": 8081,
            "guest_addr": "10.0.2.7",
            "guest_port": 81,
        },
    ]
    listed = {"return": {"entries": entries}, "entries": entries}
    assert ask({"execute": "list_hostfwd"}, table) == listed
    assert ask({"execute": "remove_hostfwd", "arguments": {"id": 1}}, table) == {"return": {}}
    assert [entry.id for entry in table.forwards()] == [2]


@pytest.mark.parametrize("left_open", ["", None])
def test_addresses_left_open_are_the_defaults(left_open: str | None) -> None:
    """Podman sends them empty."""
    table = Table()
    request = add(
        proto="tcp", host_addr=left_open, host_port=8080, guest_addr=left_open, guest_port=80
    )
    assert ask(request, table) == {"return": {"id": 1}}
    assert table.entries[1] == Entry(1, "tcp", ("0.0.0.0", 8080), (GUEST, 80))


def test_forward_of_a_unix_socket_is_listed() -> None:
    table = Table()
    table.entries[1] = Entry(1, "unix", "/run/web.sock", (GUEST, 80))
    (entry,) = ask({"execute": "list_hostfwd"}, table)["entries"]
    assert (entry["host_addr"], entry["host_port"]) == ("/run/web.sock", 0)


FULL = {"proto": "tcp", "host_addr": "127.0.0.1", "host_port": 80, "guest_port": 80}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("proto", "sctp"),
        ("proto", "tcp6"),
        ("proto", None),
        ("proto", ["tcp"]),
        ("host_addr", "zzz"),
        ("host_addr", 17),
        ("host_addr", "1.2"),
        ("host_addr", "::1"),  # slirp4netns has none of IPv6 here, with --enable-ipv6 neither
        ("host_addr", "1.2.3.4\0"),
        ("host_port", 0),
        ("host_port", "80"),
        ("host_port", 65536),
        ("host_port", True),
        ("host_port", 1e300),
        ("guest_addr", "xx"),
        ("guest_addr", "fd00::100"),
        ("guest_port", 0),
        ("guest_port", None),
        ("guest_port", -1),
    ],
)
def test_bad_arguments_are_named(field: str, value: Any) -> None:
    table = Table()
    reply = ask(add(**{**FULL, field: value}), table)
    assert reply == refusal(f"add_hostfwd: bad arguments.{field}")
    assert table.entries == {}


@pytest.mark.parametrize("arguments", [None, [], 3, {}])
def test_missing_arguments_are_refused(arguments: Any) -> None:
    request = {"execute": "add_hostfwd", "arguments": arguments}
    assert ask(request, Table()) == refusal("add_hostfwd: bad arguments.proto")
    request = {"execute": "remove_hostfwd", "arguments": arguments}
    assert ask(request, Table()) == refusal("remove_hostfwd: bad arguments.id")


def test_port_in_use() -> None:
    table = Table()
    ask(add(**FULL), table)
    assert ask(add(**FULL), table) == refusal("add_hostfwd: slirp_add_hostfwd failed")


@pytest.mark.parametrize(
    ("request_data", "text"),
    [
        (b"nonsense", "cannot parse JSON"),
        (b"", "cannot parse JSON"),
        (b"\xff\xfe", "cannot parse JSON"),
        (b"[" * 4000, "cannot parse JSON"),
        (b"[1]", "json_object() failed"),
        (b"17", "json_object() failed"),
        (b'{"foo":7}', "no execute found"),
        (b'{"execute":7}', "no execute found"),
        (b'{"execute":"foo"}', "unknown execute"),
        (b'{"execute":"' + b"x" * 5000 + b'"}', "too large message"),
    ],
)
def test_refusals(request_data: bytes, text: str) -> None:
    assert ask(request_data, Table()) == refusal(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
VERBS = st.sampled_from(["add_hostfwd", "remove_hostfwd", "list_hostfwd"])
FIELDS = st.sampled_from(["proto", "host_addr", "host_port", "guest_addr", "guest_port", "id"])
REQUESTS = st.fixed_dictionaries(
    {"execute": VERBS | JSON},
    optional={"arguments": st.dictionaries(FIELDS, JSON | st.just("tcp")) | JSON},
)


@given(st.binary() | REQUESTS.map(lambda value: json.dumps(value).encode()))
def test_every_request_has_one_reply(data: bytes) -> None:
    reply = json.loads(api.answer(data, Table(), GUEST))
    assert {"return", "error"} & set(reply)


class Served(NamedTuple):
    path: Path
    network: Network

    def turns(self) -> None:
        """Turn the loop until nothing that is under way can go on by itself."""
        while self.network.poll(0.05):
            pass

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(str(self.path))
        return client


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    path = tmp_path / "api.sock"
    path.write_text("in the way")
    with Network() as network:
        listening = api.ApiSocket(str(path), network, GUEST)
        yield Served(path, network)
        listening.close()
    assert not path.exists()


LIST = b'{"execute": "list_hostfwd"}'
EMPTY = b'{"return":{"entries":[]},"entries":[]}'


def test_socket_is_the_owners(served: Served) -> None:
    assert os.stat(served.path).st_mode & 0o077 == 0


def test_request_in_pieces(served: Served) -> None:
    with served.connect() as client:
        for piece in (LIST[:5], LIST[5:20], LIST[20:]):
            client.send(piece)
            served.turns()
        assert client.recv(1000) == EMPTY
        assert client.recv(1000) == b""


def test_half_close_ends_a_request(served: Served) -> None:
    with served.connect() as client:
        client.send(b'{"execute"')
        client.shutdown(socket.SHUT_WR)
        served.turns()
        assert b"cannot parse JSON" in client.recv(1000)


def test_endless_request_is_cut(served: Served) -> None:
    with served.connect() as client:
        client.send(b" " * api.REQUEST_MAX)
        served.turns()
        assert b"too large message" in client.recv(1000)


def test_client_that_leaves_early(served: Served) -> None:
    client = served.connect()
    client.send(LIST)
    client.close()
    served.turns()
    with served.connect() as following:
        following.send(LIST)
        served.turns()
        assert following.recv(1000) == EMPTY


def test_forward_of_a_real_network(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        request = json.dumps(add(**{**FULL, "host_port": port})).encode()
        with served.connect() as client:
            client.send(request)
            served.turns()
            assert b"slirp_add_hostfwd failed" in client.recv(1000)
    with served.connect() as client:
        client.send(request)
        served.turns()
        assert client.recv(1000) == b'{"return":{"id":1}}'
    assert [forward.host for forward in served.network.forwards()] == [("127.0.0.1", port)]
