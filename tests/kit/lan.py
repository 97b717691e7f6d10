"""A network made of scapy, for guests that are to meet one that is not ours.

`Lan` is a router at 10.0.2.2 with DHCP, DNS and one TCP server, behind a Lance. It has nothing of
slirp in it: a guest that works here works with strangers. Time is its own (`now`), and passes only
when the guest waits and nothing is under way, so that timeouts cost a test nothing.

`mangle` sees each batch of segments that the server is about to send, and answers with the batch
that goes out: reordered, thinned, doubled.

Its TCP sends as much as the guest's window allows, retransmits everything unacknowledged after
RETRANSMIT_AFTER, and closes when the response is out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from nic.lance import Lance

ROUTER = "10.0.2.2"
RESOLVER = "10.0.2.3"
GUEST = "10.0.2.15"
SERVER = "192.0.2.80"
MAC = "52:55:0a:00:02:02"
MSS = 1460
RETRANSMIT_AFTER = 0.3  # seconds
WINDOW_SCALE = 3

Mangle = Callable[[list[Packet]], list[Packet]]


def unmangled(segments: list[Packet]) -> list[Packet]:
    return segments


@dataclass
class Connection:
    """The server's side of one connection. Offsets count bytes from its first."""

    guest_port: int
    port: int
    guest_isn: int
    window_shift: int
    mss: int
    received: bytearray = field(default_factory=bytearray)
    response: bytes = b""
    acked: int = 0
    sent: int = 0
    window: int = 0
    last_progress_at: float = 0.0
    guest_finished: bool = False
    was_reset: bool = False
    acks: list[int] = field(default_factory=list)
    isn: int = 0xFFFFF000  # wraps soon

    @property
    def end(self) -> int:
        """Offset behind the FIN."""
        return len(self.response) + 1

    @property
    def ack(self) -> int:
        return (self.guest_isn + 1 + len(self.received) + self.guest_finished) % 2**32


class Lan:
    """Call `on_idle` whenever the guest waits."""

    def __init__(
        self,
        respond: Callable[[bytes], bytes] = lambda _request: b"",
        *,
        names: dict[str, str] | None = None,
        mangle: Mangle = unmangled,
        mtu: int | None = None,
        open_port: int = 80,
        lose: Callable[[Packet], bool] = lambda _packet: False,
        scaling: bool = True,
    ) -> None:
        self.respond = respond
        self.names = names or {}
        self.mangle = mangle
        self.mtu = mtu
        self.open_port = open_port
        self.lose = lose
        self.scaling = scaling
        self.now = 1000.0
        self.connections: dict[int, Connection] = {}
        self.sent_by_guest: list[Packet] = []
        self.lance: Lance | None = None
        self._guest_mac = "ff:ff:ff:ff:ff:ff"

    def clock(self) -> float:
        return self.now

    def on_idle(self, timeout: float) -> None:
        assert self.lance is not None
        frames = []
        for frame in self.lance.frames():
            frames.append(bytes(frame.iov))
            frame.release()
        packets = [Ether(octets) for octets in frames]
        self.sent_by_guest += packets
        replies = [
            reply for packet in packets if not self.lose(packet) for reply in self._answer(packet)
        ]
        replies += self._retransmissions()
        for reply in replies:
            self.lance.receive(bytes(reply))
        self.lance.poll(self.now)
        if not replies:
            self.now += min(timeout, 0.1)
        else:
            self.now += 0.0001

    def send(self, packet: Packet) -> None:
        """A packet of the caller's making, to the guest."""
        assert self.lance is not None
        self.lance.receive(bytes(Ether(src=MAC, dst=self._guest_mac) / packet))

    def _answer(self, frame: Packet) -> Iterable[Packet]:
        self._guest_mac = frame.src
        link = Ether(src=MAC, dst=frame.src)
        if ARP in frame:
            return self._answer_arp(link, frame[ARP])
        if DHCP in frame:
            return [link / self._answer_dhcp(frame)]
        if UDP in frame and frame[UDP].dport == 53:
            return [link / self._answer_dns(frame)]
        if ICMP in frame and frame[ICMP].type == 8:
            echo = frame[ICMP]
            answer = ICMP(type=0, id=echo.id, seq=echo.seq) / Raw(bytes(echo.payload))
            return [link / IP(src=frame[IP].dst, dst=frame[IP].src) / answer]
        if TCP in frame:
            return [link / packet for packet in self._answer_tcp(frame)]
        return []

    def _answer_arp(self, link: Packet, arp: Packet) -> list[Packet]:
        if arp.op != 1 or arp.pdst not in (ROUTER, RESOLVER):
            return []
        return [link / ARP(op=2, hwsrc=MAC, psrc=arp.pdst, hwdst=arp.hwsrc, pdst=arp.psrc)]

    def _answer_dhcp(self, frame: Packet) -> Packet:
        kinds = {1: "offer", 3: "ack"}
        (kind,) = [option[1] for option in frame[DHCP].options if option[0] == "message-type"]
        options: list[object] = [
            ("message-type", kinds[kind]),
            ("server_id", ROUTER),
            ("subnet_mask", "255.255.255.0"),
            ("router", ROUTER),
            ("name_server", RESOLVER),
            ("lease_time", 3600),
        ]
        if self.mtu is not None:
            options.append(("interface-mtu", self.mtu))
        bootp = BOOTP(op=2, xid=frame[BOOTP].xid, yiaddr=GUEST, chaddr=frame[BOOTP].chaddr)
        wrapped = UDP(sport=67, dport=68) / bootp / DHCP(options=[*options, "end"])
        return IP(src=ROUTER, dst=GUEST) / wrapped

    def _answer_dns(self, frame: Packet) -> Packet:
        query = frame[DNS]
        name = query.qd[0].qname.decode().rstrip(".")
        addr = self.names.get(name)
        records = [DNSRR(rrname=name, rdata=addr)] if addr else []
        answer = DNS(id=query.id, qr=1, ra=1, rcode=0 if addr else 3, qd=query.qd, an=records)
        back = UDP(sport=53, dport=frame[UDP].sport)
        return IP(src=frame[IP].dst, dst=frame[IP].src) / back / answer

    def _answer_tcp(self, frame: Packet) -> list[Packet]:
        tcp = frame[TCP]
        connection = self.connections.get(tcp.sport)
        if connection is None:
            return self._answer_stranger(frame)
        if "R" in tcp.flags:
            connection.was_reset = True
            return []
        if "S" in tcp.flags:
            return [self._segment(connection, frame[IP].dst, "SA", connection.isn)]
        return self._advance(connection, frame)

    def _answer_stranger(self, frame: Packet) -> list[Packet]:
        tcp = frame[TCP]
        back = IP(src=frame[IP].dst, dst=frame[IP].src)
        if tcp.flags != "S":
            return []
        if tcp.dport != self.open_port:
            return [back / TCP(sport=tcp.dport, dport=tcp.sport, flags="RA", ack=tcp.seq + 1)]
        options = dict(tcp.options)
        self.connections[tcp.sport] = connection = Connection(
            guest_port=tcp.sport,
            port=tcp.dport,
            guest_isn=tcp.seq,
            window_shift=options.get("WScale", 0) if self.scaling else 0,
            mss=min(MSS, options.get("MSS", 536)),
            last_progress_at=self.now,
        )
        return [self._segment(connection, frame[IP].dst, "SA", connection.isn)]

    def _advance(self, connection: Connection, frame: Packet) -> list[Packet]:
        tcp = frame[TCP]
        start = len(connection.received) + connection.guest_isn + 1
        payload = bytes(tcp.payload)[: frame[IP].len - 20 - tcp.dataofs * 4]
        fresh = payload and tcp.seq == start % 2**32
        if fresh:
            connection.received += payload
        if "F" in tcp.flags and (tcp.seq + len(payload)) % 2**32 == connection.ack:
            connection.guest_finished = fresh = True
        acked = (tcp.ack - connection.isn - 1) % 2**32
        if connection.acked < acked <= connection.end:
            connection.acked = acked
            connection.last_progress_at = self.now
        connection.acks.append(acked)
        connection.window = tcp.window << connection.window_shift
        if not connection.response and b"\r\n\r\n" in connection.received:
            connection.response = self.respond(bytes(connection.received))
        segments = self._sendable(connection, frame[IP].dst)
        if fresh and not segments:
            seq = connection.isn + 1 + connection.sent
            segments = [self._segment(connection, frame[IP].dst, "A", seq)]
        return self.mangle(segments)

    def _sendable(self, connection: Connection, server: str) -> list[Packet]:
        segments: list[Packet] = []
        limit = connection.acked + connection.window
        while connection.response and connection.sent < min(connection.end, limit):
            at = connection.sent
            size = min(connection.mss, limit - at)
            data = connection.response[at : at + size]
            last = at + len(data) == len(connection.response)
            segment = self._segment(
                connection, server, "FPA" if last else "A", connection.isn + 1 + at
            )
            segments.append(segment / Raw(data))
            connection.sent += len(data) + last
        return segments

    def _retransmissions(self) -> list[Packet]:
        link = Ether(src=MAC, dst=self._guest_mac)
        out: list[Packet] = []
        for connection in self.connections.values():
            waited = self.now - connection.last_progress_at
            if connection.was_reset or not connection.sent or connection.acked == connection.end:
                continue
            if waited > RETRANSMIT_AFTER:
                connection.sent = connection.acked
                connection.last_progress_at = self.now
                out += [
                    link / segment for segment in self.mangle(self._sendable(connection, SERVER))
                ]
        return out

    def _segment(self, connection: Connection, server: str, flags: str, seq: int) -> Packet:
        options: list[tuple[str, object]] = []
        if "S" in flags:
            options = [("MSS", MSS), ("WScale", WINDOW_SCALE)] if self.scaling else [("MSS", MSS)]
        tcp = TCP(
            sport=connection.port,
            dport=connection.guest_port,
            flags=flags,
            seq=seq % 2**32,
            ack=connection.ack,
            window=8192,
            options=options,
        )
        return IP(src=server, dst=GUEST) / tcp
