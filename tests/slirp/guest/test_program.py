"""The guest's program, on a network of scapy's: every protocol it speaks, and what can go wrong."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from slirp.guest.prom import Parameters, Result, StaticAddress
from tests.kit.lan import GUEST, RESOLVER, ROUTER, Lan
from tests.slirp.guest.bench import NAMES, Bench, fetch

BODY = random.Random(1).randbytes(60_000)


def response(body: bytes = BODY, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", body])


def whole(body: bytes = BODY) -> bytes:
    return response(body, b"Content-Length: %d" % len(body))


def chunked(body: bytes, sizes: list[int]) -> bytes:
    out, at = b"", 0
    for size in sizes:
        piece = body[at : at + size]
        out += b"%X;name=value\r\n%s\r\n" % (len(piece), piece)
        at += size
    return response(out + b"0\r\nTrailer: x\r\n\r\n", b"Transfer-Encoding: chunked")


def lan(answer: bytes | None = None, **options: Any) -> Lan:
    return Lan(lambda _request: whole() if answer is None else answer, names=NAMES, **options)


def is_whole(result: Result, body: bytes = BODY) -> bool:
    return (
        result.ok
        and result.octets == len(body)
        and result.sha256 == hashlib.sha256(body).hexdigest()
    )


class TestFetch:
    def test_from_lease_to_digest(self) -> None:
        network = lan()
        bench = Bench(network, pings=3)
        result = bench.run()
        assert is_whole(result)
        assert (result.http_status, result.expected) == (200, len(BODY))
        assert (result.address, result.router, result.dns) == (GUEST, ROUTER, RESOLVER)
        assert (result.mtu, result.lease) == (1500, 3600)
        assert result.counters["ping_received"] == 3
        assert bench.lines[-1].startswith(f"RESULT status=ok http=200 bytes={len(BODY)} sha256=")
        (connection,) = network.connections.values()
        assert connection.received.startswith(b"GET /file HTTP/1.1\r\nHost: files.example\r\n")
        assert connection.guest_finished
        assert connection.acked == connection.end

    @pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 1460, 4097])
    def test_digest_of_any_length(self, length: int) -> None:
        body = BODY[:length]
        assert is_whole(fetch(lan(whole(body))), body)

    @pytest.mark.parametrize("padding", range(4))
    def test_digest_at_any_alignment(self, padding: int) -> None:
        answer = response(BODY, b"X: " + b"y" * padding, b"Content-Length: %d" % len(BODY))
        assert is_whole(fetch(lan(answer)))

    @pytest.mark.parametrize("bswp", [0, 1])
    @pytest.mark.parametrize("rx_buffer", [64, 128, 1544, 4096])
    def test_rings(self, bswp: int, rx_buffer: int) -> None:
        result = fetch(lan(), bswp=bswp, rx_buffer=rx_buffer, window=4096)
        assert is_whole(result)
        chained = result.counters["rx_descriptors"] > result.counters["rx_frames"]
        assert chained == (rx_buffer < 1518)

    @pytest.mark.parametrize("bswp", [0, 1])
    @pytest.mark.parametrize("entries", [1, 2, 16])
    def test_small_rings(self, entries: int, bswp: int) -> None:
        rings = {"rx_entries": entries, "tx_entries": entries, "window": 1460 * entries}
        assert is_whole(fetch(lan(), bswp=bswp, **rings))

    @pytest.mark.parametrize("bswp", [0, 1])
    @pytest.mark.parametrize("rx_buffer", [100, 1544, 4096])
    def test_scattered_pages(self, bswp: int, rx_buffer: int) -> None:
        assert is_whole(fetch(lan(), scatter=True, bswp=bswp, rx_buffer=rx_buffer, window=4096))

    def test_static_address_asks_no_dhcp(self) -> None:
        network = lan()
        static = StaticAddress(GUEST, router=ROUTER, dns=RESOLVER)
        assert is_whole(fetch(network, static=static))
        assert not any(DHCP in packet for packet in network.sent_by_guest)

    def test_connects_where_told_and_names_the_urls_host(self) -> None:
        network = lan()
        url = "http://127.0.0.1/a/b?c=d#fragment"
        assert is_whole(fetch(network, url=url, connect_host="files.example"))
        (connection,) = network.connections.values()
        assert connection.received.startswith(b"GET /a/b?c=d HTTP/1.1\r\nHost: 127.0.0.1\r\n")

    def test_no_url_is_no_error(self) -> None:
        result = fetch(lan(), url="")
        assert result.ok
        assert (result.http_status, result.octets) == (0, 0)


class TestHttp:
    def test_body_to_the_end_of_the_connection(self) -> None:
        result = fetch(lan(response()))
        assert is_whole(result)
        assert result.expected is None

    @pytest.mark.parametrize(
        "sizes", [[60_000], [1] * 40 + [59_960], [1455] * 42], ids=["one", "tiny", "many"]
    )
    def test_chunks(self, sizes: list[int]) -> None:
        assert is_whole(fetch(lan(chunked(BODY, sizes))))

    def test_chunks_win_over_a_length(self) -> None:
        answer = chunked(BODY, [30_000, 30_000])
        answer = answer.replace(b"Transfer", b"Content-Length: 5\r\nTransfer", 1)
        assert is_whole(fetch(lan(answer)))

    def test_interim_responses_are_skipped(self) -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        assert is_whole(fetch(lan(interim + whole())))

    def test_long_fields_are_no_matter(self) -> None:
        answer = response(BODY, b"X: " + b"y" * 5000, b"CONTENT-LENGTH:\t%d  " % len(BODY))
        assert is_whole(fetch(lan(answer)))

    @pytest.mark.parametrize(
        ("answer", "status", "http_status"),
        [
            (response(b"", b"Location: /y", status=b"302 Found"), "redirect", 302),
            (response(b"no", status=b"404 Not Found"), "http-error", 404),
            (response(b"", status=b"204 No Content"), "http-error", 204),
            (response(BODY[:99], b"Content-Length: 100"), "truncated", 200),
            (chunked(BODY, [60_000])[:-9], "truncated", 200),
            (b"HTTP/1.1 200 OK\r\nContent-Le", "truncated", 0),
            (b"220 mail.example ESMTP\r\n", "bad-response", 0),
            (b"HTTP/2 200\r\n\r\n", "bad-response", 0),
            (response(BODY, b"Content-Length: x"), "bad-response", 0),
            (response(BODY, b"Content-Length: 1", b"Content-Length: 2"), "bad-response", 0),
            (response(BODY, b"Transfer-Encoding: gzip"), "bad-response", 0),
            (response(b"xyz\r\n", b"Transfer-Encoding: chunked"), "bad-response", 200),
            (response(b"2\r\nabc\r\n", b"Transfer-Encoding: chunked"), "bad-response", 200),
            (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 12_000, "bad-response", 0),
        ],
    )
    def test_what_is_no_whole_200(self, answer: bytes, status: str, http_status: int) -> None:
        result = fetch(lan(answer))
        assert (result.status, result.http_status) == (status, http_status)

    @pytest.mark.parametrize(
        "url",
        [
            *("https://files.example/", "files.example", "http://", "http:///x"),
            *("http://u@files.example/", "http://files.example:0/"),
            *("http://files.example:65536/", "http://files.example/a b"),
        ],
    )
    def test_urls_that_are_none(self, url: str) -> None:
        assert fetch(lan(), url=url).status == "bad-url"


class TestTcp:
    def test_segments_out_of_order(self) -> None:
        rng = random.Random(2)
        network = lan(mangle=lambda segments: rng.sample(segments, len(segments)))
        result = fetch(network)
        assert is_whole(result)
        assert result.counters["tcp_out_of_order"] > 10

    def test_segments_twice(self) -> None:
        rng = random.Random(3)

        def double(segments: list[Packet]) -> list[Packet]:
            return [again for segment in segments for again in [segment] * rng.choice((1, 2, 3))]

        assert is_whole(fetch(lan(mangle=double)))

    def test_segments_that_overlap(self) -> None:
        def tails_first(segments: list[Packet]) -> list[Packet]:
            out: list[Packet] = []
            for segment in segments:
                tail = segment.copy()
                payload = bytes(segment[TCP].payload)
                if "F" not in segment[TCP].flags and len(payload) > 100:
                    tail[TCP].remove_payload()
                    tail[TCP].seq = (segment[TCP].seq + 100) % 2**32
                    out.append(tail / Raw(payload[100:]))
                out.append(segment)
            return out

        result = fetch(lan(mangle=tails_first))
        assert is_whole(result)
        assert result.counters["tcp_out_of_order"] > 10

    @pytest.mark.parametrize("seed", range(4))
    def test_losses_and_disorder_together(self, seed: int) -> None:
        rng = random.Random(seed)

        def thin(segments: list[Packet]) -> list[Packet]:
            kept = [segment for segment in segments if rng.random() > 0.15]
            return rng.sample(kept, len(kept)) if rng.random() < 0.5 else kept

        def lose(packet: Packet) -> bool:
            return TCP in packet and rng.random() < 0.1

        assert is_whole(fetch(lan(mangle=thin, lose=lose), ack_every=1))

    def test_more_holes_than_the_list_holds(self) -> None:
        def every_other_first(segments: list[Packet]) -> list[Packet]:
            return segments[1::2] + segments[::2]

        assert is_whole(fetch(lan(mangle=every_other_first)))

    def test_request_is_sent_again(self) -> None:
        lost: list[Packet] = []

        def lose_first_request(packet: Packet) -> bool:
            if TCP in packet and b"GET" in bytes(packet) and not lost:
                lost.append(packet)
                return True
            return False

        result = fetch(lan(lose=lose_first_request))
        assert is_whole(result)
        assert result.counters["tcp_retransmits"] == 1

    def test_acknowledges_every_second_segment(self) -> None:
        result = fetch(lan())
        data_segments = -(-len(whole()) // 1460)
        assert result.counters["tcp_acks"] <= data_segments / 2 + 6

    def test_without_window_scaling(self) -> None:
        assert is_whole(fetch(lan(scaling=False), window=1 << 17))

    def test_bad_checksum_is_dropped(self) -> None:
        spoilt: list[Packet] = []

        def spoil(segments: list[Packet]) -> list[Packet]:
            if len(segments) > 3 and not spoilt:
                segments[2][TCP].chksum = 0x1234
                spoilt.append(segments[2])
            return segments

        result = fetch(lan(mangle=spoil))
        assert is_whole(result)
        assert result.counters["tcp_bad_checksums"] == 1

    def test_refused(self) -> None:
        assert fetch(lan(), url="http://files.example:81/").status == "refused"

    def test_reset_in_the_middle(self) -> None:
        def reset(segments: list[Packet]) -> list[Packet]:
            for segment in segments[3:4]:
                segment[TCP].flags = "RA"
                segment[TCP].remove_payload()
            return segments[:4]

        assert fetch(lan(mangle=reset)).status == "reset"

    def test_nobody_answers_the_syn(self) -> None:
        assert fetch(lan(lose=lambda packet: TCP in packet)).status == "timed-out"

    def test_server_falls_silent(self) -> None:
        result = fetch(lan(mangle=lambda segments: segments[:5] if len(segments) < 6 else []))
        assert result.status == "timed-out"

    def test_refusal_by_icmp(self) -> None:
        network = lan()
        bench = Bench(network)
        answer = network.on_idle

        def on_idle(timeout: float) -> None:
            network.lose = lambda packet: TCP in packet
            answer(timeout)
            syns = [packet for packet in network.sent_by_guest if TCP in packet]
            if syns:
                quoted = Raw(bytes(syns[0][IP])[:28])
                network.send(IP(src=ROUTER, dst=GUEST) / ICMP(type=3, code=1) / quoted)

        assert bench.board.run(on_idle).status == "unreachable"


class TestNames:
    def test_no_such_name(self) -> None:
        assert fetch(lan(), url="http://nowhere.example/").status == "no-such-name"

    def test_labels_that_are_none(self) -> None:
        assert fetch(lan(), url=f"http://{'x' * 64}.example/").status == "no-such-name"

    def test_an_address_is_its_own_name(self) -> None:
        network = lan()
        assert is_whole(fetch(network, url="http://192.0.2.80/file"))
        assert not any(DNS in packet for packet in network.sent_by_guest)

    def test_resolver_that_never_answers(self) -> None:
        network = lan(lose=lambda packet: DNS in packet)
        assert fetch(network).status == "no-resolver"
        assert sum(DNS in packet for packet in network.sent_by_guest) == 4

    def test_query_is_sent_again(self) -> None:
        lost: list[Packet] = []

        def lose_first(packet: Packet) -> bool:
            if DNS in packet:
                lost.append(packet)
            return DNS in packet and len(lost) == 1

        assert is_whole(fetch(lan(lose=lose_first)))


class TestDhcp:
    def test_nobody_there(self) -> None:
        network = lan(lose=lambda packet: DHCP in packet)
        assert fetch(network).status == "no-lease"

    @pytest.mark.parametrize("lost_one", [0, 1])
    def test_messages_are_sent_again(self, lost_one: int) -> None:
        seen: list[Packet] = []

        def lose(packet: Packet) -> bool:
            if DHCP in packet:
                seen.append(packet)
            return DHCP in packet and len(seen) == lost_one + 1

        assert is_whole(fetch(lan(lose=lose)))

    def test_mtu_of_the_lease_bounds_every_segment(self) -> None:
        network = lan(mtu=900)
        result = fetch(network)
        assert is_whole(result)
        assert result.mtu == 900
        (syn,) = [p for p in network.sent_by_guest if TCP in p and p[TCP].flags == "S"]
        assert dict(syn[TCP].options)["MSS"] == 860


class TestAnswers:
    def exchange(self, probe: Packet) -> list[Packet]:
        """What the guest sends back to a packet while it stays."""
        network = lan()
        bench = Bench(network, url="", serve_for=3.0)
        sent = 0

        def on_idle(timeout: float) -> None:
            nonlocal sent
            configured = bench.board.result().address == GUEST
            if configured and timeout > 1 and not sent:
                sent = len(network.sent_by_guest)
                network.send(probe)
            network.on_idle(timeout)

        assert bench.board.run(on_idle).ok
        assert sent
        return network.sent_by_guest[sent:]

    @pytest.mark.parametrize("length", [0, 1, 56, 1472])
    def test_echo(self, length: int) -> None:
        echo = ICMP(type=8, id=77, seq=5) / Raw(BODY[:length])
        (reply,) = self.exchange(IP(src=ROUTER, dst=GUEST) / echo)
        answer = reply[ICMP]
        assert (answer.type, answer.id, answer.seq) == (0, 77, 5)
        assert bytes(answer.payload)[:length] == BODY[:length]
        checked = IP(bytes(reply[IP]))
        sums = checked.chksum, checked[ICMP].chksum
        del checked.chksum, checked[ICMP].chksum
        rebuilt = IP(bytes(checked))
        assert sums == (rebuilt.chksum, rebuilt[ICMP].chksum)

    def test_arp(self) -> None:
        (reply,) = self.exchange(ARP(op=1, hwsrc="52:55:0a:00:02:02", psrc=ROUTER, pdst=GUEST))
        assert (reply[ARP].op, reply[ARP].psrc, reply[ARP].hwsrc) == (2, GUEST, reply.src)
        assert reply[ARP].hwsrc == Parameters().mac.hex(":")

    @pytest.mark.parametrize(
        ("probe", "answer"),
        [
            (TCP(dport=80, flags="S", seq=2**32 - 1), (0, 0, "RA")),
            (TCP(dport=80, flags="FA", seq=7, ack=99), (99, 0, "R")),
            (TCP(dport=80, flags="PF", seq=7) / Raw(b"12345"), (0, 13, "RA")),
        ],
    )
    def test_closed_port(self, probe: Packet, answer: tuple[int, int, str]) -> None:
        (reply,) = self.exchange(IP(src=ROUTER, dst=GUEST) / probe)
        tcp = reply[TCP]
        assert (tcp.seq, tcp.ack, tcp.flags) == answer
        assert (tcp.sport, tcp.dport) == (80, probe.sport)

    @pytest.mark.parametrize(
        "probe",
        [
            ARP(op=1, psrc=ROUTER, pdst="10.0.2.99"),
            IP(src=ROUTER, dst="10.0.2.99") / ICMP(),
            IP(src=ROUTER, dst=GUEST, chksum=1) / ICMP(),
            IP(src=ROUTER, dst=GUEST) / ICMP(chksum=1),
            IP(src=ROUTER, dst=GUEST, flags="MF") / ICMP(),
            IP(src=ROUTER, dst=GUEST, len=2000) / ICMP(),
            IP(src=ROUTER, dst=GUEST, ihl=15) / ICMP(),
            IP(src=ROUTER, dst=GUEST) / UDP(dport=68, len=4000),
            IP(src=ROUTER, dst=GUEST) / TCP(dport=80, chksum=1),
            IP(src=ROUTER, dst=GUEST) / TCP(dport=80, dataofs=4),
            IP(src=ROUTER, dst=GUEST) / TCP(dport=80, dataofs=15),
            IP(src=ROUTER, dst=GUEST) / TCP(dport=80, flags="R"),
            IP(src=ROUTER, dst=GUEST) / Raw(b"xyz"),
            Raw(b""),
        ],
        ids=range(14),
    )
    def test_silence(self, probe: Packet) -> None:
        assert self.exchange(probe) == []


class TestNoise:
    """Damaged frames in any state: the guest, which traps on a misaligned access, comes through."""

    TEMPLATES = (
        ARP(op=1, psrc=ROUTER, pdst=GUEST),
        IP(src=ROUTER, dst=GUEST) / ICMP(type=8) / Raw(b"x" * 40),
        IP(src=ROUTER, dst=GUEST) / ICMP(type=3, code=1) / IP(src=GUEST, dst=ROUTER) / TCP(),
        IP(src=RESOLVER, dst=GUEST) / UDP(sport=53) / DNS(qr=1, an=[DNSRR(rdata="192.0.2.1")]),
        IP(src=ROUTER, dst=GUEST) / UDP(sport=67, dport=68) / BOOTP(op=2) / DHCP(options=["end"]),
        IP(src="192.0.2.80", dst=GUEST) / TCP(sport=80, flags="A", options=[("MSS", 1000)]),
    )

    def damaged(self, rng: random.Random, network: Lan) -> bytes:
        """A template, aimed at the guest's open port where it has one, with bytes changed."""
        packet = rng.choice(self.TEMPLATES).copy()
        sent = network.sent_by_guest[-1] if network.sent_by_guest else None
        for layer in (UDP, TCP):
            if layer in packet and sent is not None and layer in sent:
                packet[layer].dport = sent[layer].sport
        octets = bytearray(bytes(packet))
        if rng.random() < 0.9:
            for _ in range(rng.choice((1, 1, 2, 8))):
                octets[rng.randrange(len(octets))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        if IP in packet and rng.random() < 0.8:
            octets[10:12] = bytes(2)
            octets[10:12] = checksum(bytes(octets[:20])).to_bytes(2, "big")
        return bytes(octets[: rng.choice((len(octets), rng.randrange(len(octets) + 1)))])

    @pytest.mark.parametrize("bswp", [0, 1])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_guest_comes_through(self, seed: int, bswp: int) -> None:
        rng = random.Random(seed)
        network = lan()
        bench = Bench(network, bswp=bswp, rx_buffer=rng.choice((64, 1544)), serve_for=1.0)
        mac = Parameters().mac

        def on_idle(timeout: float) -> None:
            for _ in range(8):
                octets = self.damaged(rng, network)
                ethertype = rng.choice((b"\x08\x00", b"\x08\x06")) if octets else b"\0\0"
                bench.board.lance.receive(mac + mac + ethertype + octets)
            network.on_idle(timeout)

        result = bench.board.run(on_idle)
        assert result.status not in ("running", "no-lance")
        assert result.counters["rx_frames"] > 100
        assert result.counters["restarts"] == 0
