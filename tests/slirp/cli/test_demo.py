"""`slirp demo`: the guest fetches, the digests are equal, what is shown is what was measured."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from slirp.cli.demo_report import EACH_STAGE
from slirp.cli.main import main
from slirp.host import uring
from slirp.sight.layout import DISK_STAGES, STAGES, check, frames
from slirp.sight.pcapng import read_packets
from tests.kit.need import missing, need_ipv6
from tests.kit.tshark import both, tshark
from tests.kit.web import WebServer
from tests.slirp.guest.bench import need_unicorn

CONTENT: Final = bytes(range(251)) * 800  # 200,800 bytes; no power of two in it


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; counts upward where asked for something new each time."""

    protocol_version = "HTTP/1.1"
    hosts: ClassVar[list[str]] = []
    fresh: ClassVar[Iterator[int]] = itertools.count()

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        content = CONTENT
        if self.path == "/fresh":
            content = str(next(self.fresh)).encode()
        if self.path == "/empty":
            content = b""
        self.send_response({"/gone": 404, "/moved": 302}.get(self.path, 200))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave early are part of the tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with Server(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _unicorn() -> None:
    need_unicorn()


def demo_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    assert main(["demo", "--json", *arguments]) == status
    return json.loads(capsys.readouterr().out)


def test_json_has_what_was_promised(capsys: pytest.CaptureFixture[str]) -> None:
    shown = demo_json(capsys, "--size", "300k")
    assert shown["ok"] is True
    assert shown["bytes"] == 300 << 10
    assert 0 < shown["seconds"] < 60
    assert shown["sha256_host"] == shown["sha256_guest"]
    assert len(shown["sha256_host"]) == 64
    assert shown["copied_bytes"] == {"tcp": 0, "lance": 0, "ledma": 0}
    assert shown["packets"]["to_guest"] > 300 * 1024 // 1460
    assert set(shown["drops"].values()) == {0}
    assert shown["captures"] == []


def test_the_layout_is_a_full_frame_at_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    layout = demo_json(capsys, "--size", "300k")["layout"]
    assert list(layout) == ["tcp", *STAGES]
    for stage, added in (("tcp", 0), ("ip", 20), ("ethernet", 34), ("lance", 38), ("memory", 38)):
        assert sum(length for _, _, length in layout[stage]) == 1460 + 20 + added
    assert layout["ethernet"] == [
        ["ethernet", 0, 14],
        ["ipv4", 14, 20],
        ["tcp", 34, 20],
        ["payload", 54, 1460],
    ]
    top = {address >> 24 for _, address, _ in layout["ledma"]}
    assert top == {0xFC}
    assert [a & 0xFFFFFF for _, a, _ in layout["ledma"]] == [a for _, a, _ in layout["lance"]]
    assert len(layout["memory"]) == len(layout["lance"]) + 1  # cut by a page's end


@pytest.mark.parametrize("rx_buffer", [64, 128, 1544, 4096])
@pytest.mark.parametrize("bswp", [0, 1])
def test_any_url_of_the_host_with_any_buffers(
    bswp: int, rx_buffer: int, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--bswp", str(bswp), "--rx-buffer", str(rx_buffer))
    shown = demo_json(capsys, "--url", f"http://{server}/file?x=1", *options)
    assert shown["sha256_guest"] == hashlib.sha256(CONTENT).hexdigest()
    assert shown["bytes"] == len(CONTENT)
    assert Handler.hosts[-1] == server
    copied = shown["copied_bytes"]["ledma"]
    assert copied == 0 if bswp else 0 < copied < len(CONTENT) / 8  # frames from the guest bounce


@pytest.mark.parametrize("size", ["1", "300k"])
def test_onto_a_disk_made_for_the_occasion(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = demo_json(capsys, "--disk", "--size", size)
    octets = 1 if size == "1" else 300 << 10
    disk = shown["disk"]
    assert list(disk) == [
        *("ok", "bytes_read", "bytes_written", "sha256_host", "sha256_guest", "copied_bytes"),
        "layout",
    ]
    assert (shown["ok"], disk["ok"]) == (True, True)
    assert disk["sha256_host"] == disk["sha256_guest"] == shown["sha256_host"]
    assert disk["bytes_read"] == disk["bytes_written"] == -(-octets // 512) * 512
    assert disk["copied_bytes"] == {"esp": 0, "disk": 0}


@pytest.mark.parametrize("endpoint", ["epoll", "threads", "uring"])
def test_each_endpoint_ends_with_equal_digests(
    endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if endpoint == "uring" and (reason := uring.why_not()):
        missing(reason)
    shown = demo_json(capsys, "--disk", "--endpoint", endpoint, "--size", "1M")
    assert shown["disk"]["ok"]
    assert shown["disk"]["sha256_guest"] == shown["sha256_host"]
    assert shown["disk"]["copied_bytes"] == {"esp": 0, "disk": 0}


def test_an_endpoint_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uring, "why_not", lambda: "the kernel refuses io_uring")
    assert main(["demo", "--disk", "--endpoint", "uring", "--size", "1"]) == 1
    assert "slirp: --endpoint uring: the kernel refuses io_uring" in capsys.readouterr().err


def test_the_layout_of_a_disk_s_transfer(capsys: pytest.CaptureFixture[str]) -> None:
    layout = demo_json(capsys, "--disk", "--size", "300k")["disk"]["layout"]
    assert list(layout) == list(DISK_STAGES)
    assert {sum(length for _, _, length in segments) for segments in layout.values()} == {32768}
    assert layout["scsi"] == [["data", 0, 32768]]
    assert layout["esp"] == [["data", 0, 32768]]
    ((_, dvma, _),) = layout["espdma"]
    assert dvma >> 24 == 0xFC
    assert [length for _, _, length in layout["memory"]] == [4096] * 8, "scattered"


def test_without_a_disk_there_is_no_word_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "disk" not in demo_json(capsys, "--size", "1")


def test_onto_an_image(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xee" * (1 << 18))
    assert main(["demo", "--url", f"http://{server}/", "--disk", str(image)]) == 0
    blocks = -(-len(CONTENT) // 512) * 512
    assert image.read_bytes()[:blocks] == CONTENT + bytes(blocks - len(CONTENT))
    assert image.read_bytes()[blocks:] == b"\xee" * ((1 << 18) - blocks)
    shown = capsys.readouterr().out
    assert "scsi: target 0 is SLIRP   IMAGE DISK" in shown
    for stage in (*STAGES, *DISK_STAGES):
        assert f"\n{stage:9}" in shown
    assert f"\ndisk     {blocks:,} bytes written, {blocks:,} read back\n" in shown
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert f"SHA-256  equal: image {digest}\n                guest {digest}\n" in shown
    assert "copied   esp 0, disk 0 bytes between image and memory\n" in shown


def test_an_image_that_is_not_there_is_made(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "new.img"
    assert demo_json(capsys, "--url", f"http://{server}/", "--disk", str(image))["disk"]["ok"]
    assert image.read_bytes()[: len(CONTENT)] == CONTENT


def test_an_image_that_is_too_small(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "small.img"
    image.write_bytes(bytes(1 << 16))
    assert main(["demo", "--json", "--url", f"http://{server}/", "--disk", str(image)]) == 1
    shown = capsys.readouterr()
    assert "the image is too small for the file; give --disk a larger one" in shown.err
    assert json.loads(shown.out)["disk"]["ok"] is False


def test_an_image_that_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--size", "1", "--disk", str(tmp_path / "no" / "where")]) == 1
    assert "give it a file to write to" in capsys.readouterr().err


def test_a_capture_of_both_chains_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.pcapng"
    shown = demo_json(capsys, "--disk", "--size", "100k", "--capture", str(path))
    (capture,) = shown["captures"]
    assert set(capture["packets"]) == {*STAGES, *DISK_STAGES}
    with path.open("rb") as file:
        found = list(frames(read_packets(file)))
    assert [check(frame) for frame in found] == [None] * len(found)
    ways = {frame.seen[0].vector.command[:1] for frame in found}
    assert ways >= {b"", b"\x12", b"\x28", b"\x2a"}


def test_a_bounce_copies_the_payload_once(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--bswp", "0", "--lanes", "bounce")
    copied = demo_json(capsys, "--url", f"http://{server}/", *options)["copied_bytes"]
    assert len(CONTENT) < copied["ledma"] < 1.2 * len(CONTENT)


def test_localhost_by_name(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://{server.replace('127.0.0.1', 'localhost')}/"
    assert demo_json(capsys, "--url", url)["ok"]


def test_what_a_person_sees(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["demo", "--url", f"http://{server}/"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    console, report = shown.out.split("\n\n", 1)
    assert "slirp guest, SPARC V8" in console.splitlines()[0]
    assert "dhcp: address 10.0.2.15" in console
    assert "ping: 10.0.2.2 answered 3 of 3" in console
    for stage in STAGES:
        assert f"\n{stage:9}" in report
    assert "fetched  200,800 bytes in " in report
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert f"SHA-256  equal: host {digest}\n                guest {digest}\n" in report
    assert "copied   tcp 0, lance 0, ledma 0 bytes" in report
    assert "drops    none" in report


def test_the_generated_file_has_a_name_that_dns_resolves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--size", "1"]) == 0
    shown = capsys.readouterr().out
    assert "dns: host.slirp.internal is 10.0.2.2" in shown
    assert "fetched  1 bytes in" in shown


@pytest.mark.parametrize("options", [(), ("--bswp", "0", "--rx-buffer", "64")])
def test_over_ipv6_and_nothing_else(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = demo_json(capsys, "--ipv6", "--size", "200k", *options)
    assert shown["ok"]
    parts = [name for name, _, _ in shown["layout"]["ethernet"]]
    assert list(dict.fromkeys(parts)) == ["ethernet", "ipv6", "tcp", "payload"]


def test_a_router_configures_the_guest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--ipv6", "--size", "1k"]) == 0
    shown = capsys.readouterr().out
    own = "fd00::a00:20ff:fe5a:15"  # of its MAC, RFC 2464 §4
    assert f"router: address {own}, router fe80::2, DNS fd00::3, MTU 1500" in shown
    assert "ping: fe80::2 answered 3 of 3" in shown
    assert "dns: host.slirp.internal is fd00::2" in shown


def test_an_ipv6_address_of_the_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    with WebServer(b"over IPv6", need_ipv6()) as web:
        assert demo_json(capsys, "--ipv6", "--url", f"http://[::1]:{web.port}/file")["ok"]
        assert main(["demo", "--ipv6", "--url", "http://192.0.2.1/"]) == 2
        assert "with --ipv6 the guest has no IPv4" in capsys.readouterr().err


def test_a_file_without_octets(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = demo_json(capsys, "--url", f"http://{server}/empty")
    assert (shown["ok"], shown["bytes"]) == (True, 0)


def test_another_file_each_time_is_no_success(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", "--url", f"http://{server}/fresh"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["ok"] is False
    assert shown.err.splitlines()[-1].startswith("slirp: the guest's SHA-256 is not the host's")


@pytest.mark.parametrize(
    ("url", "status", "complaint"),
    [
        ("https://127.0.0.1/", 2, "https is not supported, the guest has no TLS"),
        ("ftp://127.0.0.1/", 2, "write http://HOST[:PORT]/PATH"),
        ("127.0.0.1:80", 2, "write http://HOST[:PORT]/PATH"),
        ("http:///path", 2, "write http://HOST[:PORT]/PATH"),
        ("http://[::1]/", 2, "the guest has no IPv6"),
        ("http://[::1/", 2, "Invalid IPv6 URL"),
        ("http://127.0.0.1:99999/", 2, "Port out of range"),
        ("http://127.0.0.2/", 2, "of the host's loopback the guest reaches 127.0.0.1"),
        ("http://me:word@127.0.0.1/", 2, "no passwords"),
        ("http://SERVER/gone", 1, "HTTP status 404"),
        ("http://SERVER/moved", 1, "HTTP status 302"),
        ("http://127.0.0.1:1/", 1, "the host itself cannot fetch it"),
    ],
)
def test_urls_that_cannot_be_fetched(
    url: str, status: int, complaint: str, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--url", url.replace("SERVER", server)]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("slirp: ")
    assert complaint in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--size", "0"], "'0' is no size"),
        (["--size", "4X"], "'4X' is no size"),
        (["--bswp", "2"], "invalid choice"),
        (["--rx-buffer", "63"], "rx_buffer"),
        (["--rx-buffer", "5000"], "rx_buffer"),
        (["--split"], "--split needs --capture"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert shown.out == ""


def test_a_capture_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"")
    assert main(["demo", "--capture", str(place / "a.pcapng")]) == 1
    assert capsys.readouterr().err.startswith("slirp: --capture ")


def checked(*paths: Path) -> list[str]:
    """The stages of the packets in the files, every frame having been checked."""
    stages = []
    for path in paths:
        with path.open("rb") as file:
            packets = list(read_packets(file))
        assert [wrong for wrong in map(check, frames(packets)) if wrong] == []
        stages += [packet.interface.name for packet in packets]
    return stages


@pytest.mark.parametrize("bswp", ["0", "1"])
def test_the_capture_holds_every_frame_at_every_stage(
    bswp: str, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "demo.pcapng"
    options = ("--capture", str(path), "--bswp", bswp)
    shown = demo_json(capsys, "--url", f"http://{server}/", *options)
    (capture,) = shown["captures"]
    assert capture["path"] == str(path)
    stages = checked(path)
    assert capture["packets"] == {stage: stages.count(stage) for stage in STAGES}
    frames_carried = sum(shown["packets"].values())
    for stage in ("ethernet", "lance", "ledma", "memory"):
        assert stages.count(stage) == frames_carried
    assert main(["layout", str(path)]) == 0
    assert f"{frames_carried} frames in {len(stages)} packets" in capsys.readouterr().out


def test_split_writes_a_file_for_each_stage(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--capture", str(tmp_path / "demo.pcapng"), "--split")
    shown = demo_json(capsys, "--url", f"http://{server}/", *options)
    files = {Path(capture["path"]).name: capture["packets"] for capture in shown["captures"]}
    assert set(files) == {f"demo-{stage}.pcapng" for stage in STAGES}
    assert checked(tmp_path / "demo-lance.pcapng").count("lance") == sum(
        files["demo-lance.pcapng"].values()
    )
    assert main(["layout", *map(str, sorted(tmp_path.glob("*.pcapng")))]) == 0


@both
def test_tshark_reads_the_demo(server: str, tmp_path: Path, version: str) -> None:
    path = tmp_path / "demo.pcapng"
    assert main(["demo", "--url", f"http://{server}/", "--capture", str(path), "--split"]) == 0
    for stage in ("ip", "ethernet", "lance"):
        checks = [f"-o{name}:TRUE" for name in ("ip.check_checksum", "tcp.check_checksum")]
        fields = ["http.response.code", "http.content_length", "tcp.reassembled.length"]
        options = [*checks, "-oeth.check_fcs:TRUE", "-Tfields", *(f"-e{name}" for name in fields)]
        wanted = "http.response || _ws.expert.severity == error || eth.fcs.status == 0"
        file = path.with_name(f"demo-{stage}.pcapng")
        (line,) = tshark(version, file, "-Y", wanted, *options)
        code, length, whole = line.split()
        assert (code, length) == ("200", str(len(CONTENT)))
        assert int(whole) > len(CONTENT)


def test_tshark_tells_the_demos_stages_apart(server: str, tmp_path: Path) -> None:
    """With what the demo prints, typed as it is printed."""
    path = tmp_path / "demo.pcapng"
    assert main(["demo", "--url", f"http://{server}/", "--capture", str(path)]) == 0
    wanted = ("-T", "fields", "-e", "frame.interface_name", "-e", "http.content_length")
    option = shlex.split(EACH_STAGE)
    shown = tshark("testing", path, *option, "-Y", "http.response", *wanted)
    assert sorted(shown) == sorted(f"{stage}\t{len(CONTENT)}" for stage in STAGES)
    assert tshark("testing", path, *option, "-Y", "tcp.analysis.retransmission") == []


def test_ctrl_c_leaves_a_valid_capture_and_status_130(tmp_path: Path) -> None:
    path = tmp_path / "demo.pcapng"
    command = [sys.executable, "-m", "slirp", "demo", "--size", "64M", "--capture", str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("tcp: connected"):
            assert process.poll() is None
        while path.stat().st_size < 1 << 20:  # until the transfer is well under way
            assert process.poll() is None
            os.sched_yield()
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
        assert (process.returncode, complaint) == (130, "")
    finally:
        process.kill()
        process.communicate()
    assert len(checked(path)) > 500


def test_without_unicorn_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    assert main(["demo", "--size", "1"]) == 2
    assert "slirp[guest]" in capsys.readouterr().err
