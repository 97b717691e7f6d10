"""The control socket: every verb on a running network, every client that does not behave."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slirp.control import clients
from slirp.control.lines import CLIENTS_MAX, EVENTS_UNREAD_MAX, is_in, is_owner, peer_of
from slirp.control.protocol import LINE_MAX, VERBS
from slirp.sight.pcapng import read_packets
from tests.kit.clock import Clock
from tests.kit.ctl import Controlled
from tests.kit.echo import EchoServer
from tests.kit.guest import GATEWAY, GUEST, udp
from tests.kit.need import need_root, need_tool
from tests.kit.ports import free_port
from tests.slirp.host.conftest import open_fds


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[Controlled]:
    with Controlled(tmp_path) as controlled:
        yield controlled


# --- verbs ----------------------------------------------------------------------------------------


def test_hello_names_versions_and_verbs(controlled: Controlled) -> None:
    hello = controlled.connect().result("hello")
    assert hello["versions"] == [1]
    assert hello["pid"] == os.getpid()
    assert hello["verbs"] == list(VERBS)


def test_status(controlled: Controlled) -> None:
    status = controlled.connect().result("status")
    assert (status["network"], status["gateway"], status["mtu"]) == ("10.0.2.0/24", GATEWAY, 1500)
    assert (status["name"], status["ports"], status["capture"]) == ("a test", 1, False)


def test_config_has_what_differs_from_the_defaults(tmp_path: Path) -> None:
    with Controlled(tmp_path, mtu=1400, domain="test") as controlled:
        config = controlled.connect().result("config")["config"]
        assert config["mtu"] == 1400
        assert config["domain"] == "test"
        assert "network" not in config


def test_guests_and_flows_as_they_come_and_go(controlled: Controlled) -> None:
    client = controlled.connect()
    assert client.result("guests")["guests"] == []
    with EchoServer() as server:
        stream = controlled.lab.guest.connect((GATEWAY, server.port))
        stream.send(b"0123456789")
        controlled.lab.turn(lambda: server.pump() and len(stream.received) == 10)
        (guest,) = client.result("guests")["guests"]
        assert (guest["address"], guest["port"]) == (GUEST, "port1")
        (flow,) = client.result("flows")["flows"]
        assert (flow["proto"], flow["state"], flow["direction"]) == ("tcp", "ESTABLISHED", "out")
        assert flow["remote"] == f"{GATEWAY}:{server.port}"
        assert flow["host_remote"] == f"127.0.0.1:{server.port}"
        assert (flow["octets_to_guest"], flow["octets_to_host"]) == (10, 10)
        assert flow["octets_per_s_to_guest"] > 0
        assert flow["mss"] == 1460
        assert client.result("flows", proto="udp")["flows"] == []
        assert client.result("flows", guest="10.0.2.99")["flows"] == []
        assert len(client.result("flows", guest=GUEST, proto="tcp")["flows"]) == 1
        assert client.result("kill", flow=flow["id"]) == {"flow": flow["id"]}
        controlled.lab.turn(lambda: stream.got_reset)
        assert client.result("flows")["flows"] == []
        assert client.error("kill", flow=flow["id"])[0] == "missing"


@pytest.mark.parametrize("name", ["", "t", "t-1", "x1", "t99999999999999999999", "u7", "t\u0661"])
def test_no_flow_is_called_that(controlled: Controlled, name: str) -> None:
    assert controlled.connect().error("kill", flow=name)[0] == "missing"


def test_udp_mapping_is_listed_and_killed(controlled: Controlled) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        client = controlled.connect()
        controlled.lab.exchange(udp(b"ping", GATEWAY, server.getsockname()[1]))
        (flow,) = client.result("flows")["flows"]
        assert (flow["proto"], flow["guest"]) == ("udp", f"{GUEST}:40000")
        assert client.result("kill", flow=flow["id"])
        assert client.result("flows", proto="udp")["flows"] == []


def test_more_flows_than_asked_for_are_counted(controlled: Controlled) -> None:
    with EchoServer() as server:
        streams = [controlled.lab.guest.connect((GATEWAY, server.port)) for _ in range(3)]
        listed = controlled.connect().result("flows", limit=2)
        assert (len(listed["flows"]), listed["more"]) == (2, 1)
        assert streams


def test_forwards_are_added_listed_removed(controlled: Controlled) -> None:
    client = controlled.connect()
    (added,) = client.result("forwards.add", spec=f"{free_port()}:80")["forwards"]
    assert added["guest"] == f"{GUEST}:80"
    assert client.result("forwards.list")["forwards"] == [added]
    assert client.error("forwards.add", spec=f"{added['host']}:80")[0] == "system"
    assert client.error("forwards.add", spec="80:80:80:80:80")[0] == "argument"
    assert client.error("forwards.remove", id=added["id"] + 1)[0] == "missing"
    assert client.result("forwards.remove", id=added["id"]) == {"id": added["id"]}
    assert client.result("forwards.list")["forwards"] == []


def test_capture_of_a_running_network(controlled: Controlled, tmp_path: Path) -> None:
    client, path = controlled.connect(), tmp_path / "x.pcapng"
    with EchoServer() as server:
        stream = controlled.lab.guest.connect((GATEWAY, server.port))
        started = client.result("capture.start", file=str(path), filter="tcp", snaplen=60)
        assert started["capture"]["snaplen"] == 60
        assert client.error("capture.start", file=str(path))[0] == "argument"
        stream.send(bytes(1000))
        controlled.lab.turn(lambda: server.pump() and len(stream.received) == 1000)
        assert client.result("capture.status")["capture"]["packets"] >= 4
        stopped = client.result("capture.stop")["capture"]
        stream.send(b"unseen")
        controlled.lab.turn(lambda: server.pump() and len(stream.received) == 1006)
    with path.open("rb") as file:
        packets = list(read_packets(file))
    assert len(packets) == stopped["packets"]
    assert {packet.interface.name for packet in packets} == {"ip", "ethernet"}
    assert max(len(packet.data) for packet in packets) == 60
    assert max(packet.original_len for packet in packets) >= 1040
    assert client.error("capture.stop")[0] == "missing"
    assert client.result("capture.status")["capture"] is None


def test_capture_that_cannot_be(controlled: Controlled, tmp_path: Path) -> None:
    client = controlled.connect()
    assert client.error("capture.start", file="x.pcapng")[1].startswith("file")
    assert client.error("capture.start", file=str(tmp_path / "no" / "x"))[0] == "system"
    for bad in ({"filter": "tcp and"}, {"files": 2000}):
        code, text = client.error("capture.start", file=str(tmp_path / "y"), **bad)
        assert (code, text.split()[0].rstrip(":")) == ("argument", next(iter(bad)))
    assert client.result("capture.status")["capture"] is None


def test_statistics_and_metrics(controlled: Controlled) -> None:
    client = controlled.connect()
    assert client.result("stats")["stats"]["control"]["connected"] == 1
    text = client.result("metrics")["text"]
    assert 'slirp_port_frames_in_total{port="port1"} 0' in text


def test_events_of_a_connection(controlled: Controlled) -> None:
    watcher, actor = controlled.connect(), controlled.connect()
    watcher.result("events")
    with EchoServer() as server:
        controlled.lab.guest.connect((GATEWAY, server.port))
        (flow,) = actor.result("flows")["flows"]
        actor.result("kill", flow=flow["id"])
    seen = [line["event"] for line in watcher.lines(3)]
    assert [event["kind"] for event in seen] == ["guest-seen", "flow-opened", "flow-closed"]
    assert [event["number"] for event in seen] == [1, 2, 3]
    assert seen[1]["data"]["id"] == flow["id"]
    assert controlled.lab.network._dispatcher.tcp.on_flow is not None
    watcher.close()
    controlled.lab.turn()
    actor.result("forwards.add", spec=f"{free_port()}:80")
    assert controlled.lab.network._dispatcher.tcp.on_flow is None


def test_events_of_some_kinds_only(controlled: Controlled) -> None:
    watcher = controlled.connect()
    assert watcher.result("events", kinds=["forward-added"]) == {"events": ["forward-added"]}
    assert watcher.error("events", kinds=["nonsense"])[0] == "argument"
    watcher.put(b'{"verb":"forwards.add","args":{"spec":"%d:80"}}\n' % free_port())
    first, second = watcher.lines(2)
    assert first["event"]["kind"] == "forward-added"
    assert second["result"]["forwards"] == [first["event"]["data"]]


def test_stop_is_told_and_then_the_connection_ends(controlled: Controlled) -> None:
    watcher, actor = controlled.connect(), controlled.connect()
    watcher.result("events", kinds=["stopping"])
    actor.put(b'{"verb":"stop"}\n{"verb":"status"}\n')
    assert json.loads(actor.rest()) == {"v": 1, "id": None, "result": {}}
    assert watcher.lines()[0]["event"]["kind"] == "stopping"
    assert controlled.stopped == 1


# --- three protocols ------------------------------------------------------------------------------


def test_slirp4netns_requests_on_the_same_socket(controlled: Controlled) -> None:
    port = free_port()
    request = {
        "execute": "add_hostfwd",
        "arguments": {
            "proto": "tcp", "host_addr": "127.0.0.1", "host_port": port, "guest_port": 80,
        },
    }  # fmt: skip
    added = controlled.connect()
    added.put(json.dumps(request).encode())
    assert json.loads(added.rest()) == {"return": {"id": 1}}
    listed = controlled.connect()
    listed.put(b'{"execute": "list_hostfwd"}\n')
    (entry,) = json.loads(listed.rest())["entries"]
    assert (entry["guest_addr"], entry["host_port"]) == (GUEST, port)
    removed = controlled.connect()
    removed.put(b'{"execute": "remove_hostfwd",')
    controlled.lab.turn()
    removed.put(b' "arguments": {"id": 1}}')
    assert json.loads(removed.rest()) == {"return": {}}
    wrong = controlled.connect()
    wrong.put(b'{"execute": "add_hostfwd"}')
    assert json.loads(wrong.rest())["error"]["desc"].startswith("bad request")


def test_what_says_both_is_a_line(controlled: Controlled) -> None:
    client = controlled.connect()
    client.put(b'{"verb": "status", "execute": "list_hostfwd"}\n')
    assert client.lines()[0]["error"]["code"] == "argument"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0\n\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
        (b"GET " + b"x" * 9000, b"400 Bad Request"),
    ],
)
def test_metrics_by_http(controlled: Controlled, head: bytes, status: bytes) -> None:
    client = controlled.connect()
    client.put(head)
    response = client.rest()
    assert response.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = response.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


# --- who may connect ------------------------------------------------------------------------------


def test_socket_is_the_owners_alone(controlled: Controlled) -> None:
    assert stat.S_ISSOCK(os.stat(controlled.path).st_mode)
    assert os.stat(controlled.path).st_mode & 0o077 == 0


def test_peer_is_told_by_the_kernel(controlled: Controlled) -> None:
    controlled.connect().result("hello")
    assert controlled.peers == [(os.getpid(), os.getuid())]


def test_only_the_owner_and_root_are_let_in() -> None:
    assert is_owner((1, os.geteuid()))
    assert is_owner((1, 0))
    assert not is_owner((1, os.geteuid() + 1))
    assert not is_owner((os.getpid(), os.geteuid()))  # the network itself, for a guest


def test_who_is_not_let_in_gets_nothing(tmp_path: Path) -> None:
    with Controlled(tmp_path, admitted=lambda peer: False) as controlled:
        client = controlled.connect()
        client.put(b'{"verb":"hello"}\n')
        assert client.rest() == b""
        assert controlled.control.lines.stats["refused"] == 1


def test_another_user_is_refused(tmp_path: Path) -> None:
    need_root()
    with Controlled(tmp_path, admitted=is_owner) as controlled:
        os.chmod(controlled.path, 0o777)
        for folder in (tmp_path, *tmp_path.parents[:3]):
            os.chmod(folder, 0o755)
        program = (
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
            's.connect(sys.argv[1]); s.settimeout(20); s.sendall(b\'{"verb":"hello"}\\n\'); '
            "sys.exit(len(s.recv(100)))"
        )
        with subprocess.Popen([sys.executable, "-c", program, controlled.path]) as process:
            controlled.lab.turn(lambda: process.poll() is not None)
        assert controlled.control.lines.stats["refused"] == 1


def test_process_in_the_guests_namespace_is_a_guest() -> None:
    own = os.stat("/proc/self/ns/net").st_ino
    assert is_in((os.getpid(), 0), own)
    assert not is_in((os.getpid(), 0), own + 1)
    assert not is_in((os.getpid(), 0), None)
    assert not is_in((0, 0), own)


def test_peer_of_a_socket_pair_is_this_process() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.getuid())


def test_file_is_removed_unless_it_is_anothers(tmp_path: Path) -> None:
    with Controlled(tmp_path) as controlled:
        path = Path(controlled.path)
    assert not path.exists()
    with Controlled(tmp_path) as controlled:
        path.unlink()
        path.write_text("another's")
    assert path.exists()


# --- clients that do not behave -------------------------------------------------------------------


def test_100_000_mutated_lines(controlled: Controlled) -> None:
    """Every one is answered, or ends its connection by its length; the network goes on."""
    random.seed(0xC0FFEE)
    samples = [
        json.dumps({"v": 1, "id": n, "verb": verb, "args": args}).encode()
        for n, (verb, args) in enumerate(
            [
                ("status", {}),
                ("flows", {"proto": "tcp", "limit": 3}),
                ("kill", {"flow": "t1"}),
                ("forwards.add", {"spec": "127.0.0.1:1:1"}),
                ("forwards.remove", {"id": 1}),
                (
                    "capture.start",
                    {"file": "relative", "filter": "tcp and (host 1.2.3.4 or not udp)"},
                ),
                ("events", {"kinds": ["lease"]}),
                ("hello", {}),
                ("metrics", {}),
            ]
        )
    ]
    samples.append(b'{"execute": "list_hostfwd", "arguments": {"id": 1, "proto": "tcp"}}')
    client, sent, answered = controlled.connect(), 0, 0
    for _ in range(100_000 // 100):
        batch = []
        for _ in range(100):
            line = mutated(random.choice(samples)).replace(b"\n", b" ")
            batch.append(line)
        client.put(b"\n".join(batch) + b"\n")
        sent += 100
        controlled.lab.turn()
        client._read()
        answered += client._heard.count(b"\n")
        client._heard = b""
        if client.ended:
            client.close()
            client = controlled.connect()
    assert sent == 100_000
    assert answered > 50_000
    assert controlled.connect().result("hello")["versions"] == [1]
    assert len(controlled.control.lines) == 2


def mutated(line: bytes) -> bytes:
    octets = bytearray(line)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(octets) + 1)
        match random.randrange(5):
            case 0:
                octets[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                octets[at:at] = random.choice(
                    [b'"', b"{", b"[", b"\\u0000", b"1e999", b"\xed\xa0\x80"]
                )
            case 2:
                del octets[at : at + random.randint(1, 8)]
            case 3:
                octets[at:at] = octets[: random.randint(0, 20)]
            case 4:
                octets[at:at] = str(random.choice([-1, 2**53, 2**64, 10**400])).encode()
    return bytes(octets)


def test_line_that_is_too_long_ends_the_connection(controlled: Controlled) -> None:
    for data in (b"x" * (LINE_MAX + 2), b"x" * (LINE_MAX + 1) + b"\n"):
        client = controlled.connect()
        client.put(data)
        assert json.loads(client.rest())["error"]["code"] == "parse"
    client = controlled.connect()
    client.put(b" " * (LINE_MAX - 20) + b'{"verb":"hello"}\n')
    assert "result" in client.lines()[0]


def test_many_requests_at_once_are_answered_in_order(controlled: Controlled) -> None:
    client = controlled.connect()
    client.put(b"".join(b'{"id":%d,"verb":"hello"}\n' % n for n in range(500)))
    assert [line["id"] for line in client.lines(500)] == list(range(500))


def test_client_that_half_closes_gets_all_its_answers(controlled: Controlled) -> None:
    client = controlled.connect()
    client.put(
        b"".join(b'{"id":%d,"verb":"hello"}\n' % n for n in range(200)) + b'{"verb":"hello"}'
    )
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest().count(b"\n") == 201


def test_client_that_asks_and_never_reads_costs_one_answer(tmp_path: Path) -> None:
    clock = Clock()
    with Controlled(tmp_path, clock=clock) as controlled:
        client = controlled.connect()
        asked = 0
        try:
            for _ in range(100_000):
                asked += client.sock.send(b'{"verb":"metrics"}\n')
                if asked % 190 == 0:
                    controlled.lab.network.poll(0.0)
        except BlockingIOError:
            pass
        controlled.lab.turn()
        (line,) = controlled.control.lines._lines
        assert 0 < line.unread < 1 << 20
        assert controlled.connect().result("hello")
        clock.now += clients.STILL_FOR + 1
        controlled.lab.turn()
        assert controlled.control.lines.stats["unread"] == 1
        assert len(controlled.control.lines) == 1


def test_watcher_that_never_reads_is_dropped_at_its_bound(controlled: Controlled) -> None:
    watcher = controlled.connect()
    watcher.result("events")
    events = controlled.lab.network._observer.events
    told = 0
    while len(controlled.control.lines) and told < 100_000:
        events.tell("lease", {"address": "10.0.2.15", "mac": "x" * 100, "hostname": ""})
        told += 1
    assert controlled.control.lines.stats["unread"] == 1
    assert told * 100 < 2 * EVENTS_UNREAD_MAX
    assert not events


def test_clients_beyond_the_bound_are_turned_away(controlled: Controlled) -> None:
    kept = [controlled.connect() for _ in range(CLIENTS_MAX)]
    controlled.lab.turn()
    assert controlled.connect().rest() == b""
    assert controlled.control.lines.stats["turned_away"] == 1
    assert kept[0].result("hello")


@pytest.mark.parametrize(
    "said", [b"", b'{"verb"', b'{"verb":"events"}\n', b'{"verb":"metrics"}\n' * 50]
)
def test_client_that_dies_in_the_middle(controlled: Controlled, said: bytes) -> None:
    controlled.connect().result("hello")
    controlled.lab.turn()
    before = open_fds()
    dying = controlled.connect()
    dying.put(said)
    controlled.lab.network.poll(0.0)
    dying.close()
    controlled.lab.turn()
    assert len(controlled.control.lines) == 1
    assert open_fds() == before
    assert not controlled.lab.network._observer.events


def test_nothing_is_on_while_nobody_listens(controlled: Controlled) -> None:
    relays = controlled.lab.network._dispatcher
    assert relays.tcp.on_flow is None
    assert relays.udp.on_mapping is None
    assert relays.stack.link.on_guest == relays.holding.guest_seen


# --- clients that nobody here wrote ---------------------------------------------------------------


def ask_with(controlled: Controlled, *command: str, given: bytes = b"") -> Any:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        controlled.lab.turn(lambda: process.poll() is not None)
        return process.stdout.read()


def test_netcat(controlled: Controlled) -> None:
    nc = need_tool("nc")
    answer = ask_with(controlled, nc, "-NU", controlled.path, given=b'{"verb":"status"}\n')
    assert json.loads(answer)["result"]["gateway"] == GATEWAY


def test_curl_scrapes_the_socket(controlled: Controlled) -> None:
    curl = need_tool("curl")
    text = ask_with(
        controlled, curl, "-sf", "--unix-socket", controlled.path, "http://localhost/metrics"
    )
    assert b"slirp_tcp_flows 0" in text
