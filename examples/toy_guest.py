"""The other side of the examples: what would be a guest's operating system, in a hundred lines.

It asks DHCP for an address, and then fetches a page over TCP (`fetch`) or serves one on port 80
(`page`). Frames for it go into `handle_frame`; what it sends goes to `send`; when it has the page,
or has served it, it calls `done`.

Does not do: retransmission, checking what it receives, ARP, a second connection. The network's own
end of TCP is slirp/tcp/connection.py.
"""

from __future__ import annotations

from collections.abc import Callable

from slirp.address import addr_from_text
from slirp.wire import checksum, dhcp
from slirp.wire.dhcp import DhcpMessage
from slirp.wire.ethernet import BROADCAST, ETHERTYPE_IPV4, EthernetHeader
from slirp.wire.ipv4 import PROTOCOL_TCP, PROTOCOL_UDP, Ipv4Header
from slirp.wire.tcp import ACK, FIN, PSH, SYN, TcpHeader, emit_options
from slirp.wire.udp import UdpHeader

MAC = bytes.fromhex("080020010203")
NOWHERE = bytes(4)
EVERYONE = b"\xff" * 4
OWN_PORT = 49152  # of the connection that fetches
MSS = 1460  # bytes


class ToyGuest:
    """One address, one connection."""

    def __init__(
        self,
        send: Callable[[bytes], object],
        *,
        fetch: tuple[str, int] | None = None,
        page: bytes = b"",
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self._send = send
        self._done = done
        self._fetch = fetch
        self._page = page
        self._router_mac = BROADCAST
        self._peer = (NOWHERE, 0, 0)  # address, its port, our port
        self._snd_nxt = self._rcv_nxt = 0
        self.addr = NOWHERE
        self.received = b""
        self.is_done = False

    def start(self) -> None:
        self._ask_dhcp(dhcp.DISCOVER, {})

    def handle_frame(self, frame: bytes) -> None:
        link = EthernetHeader.parse(frame)
        if link.ethertype != ETHERTYPE_IPV4:
            return
        ip = Ipv4Header.parse(frame[14:])
        data = frame[14 + ip.ihl : 14 + ip.total_len]
        if ip.protocol == PROTOCOL_TCP:
            self._handle_segment(ip.src, TcpHeader.parse(data), data)
        elif ip.protocol == PROTOCOL_UDP and UdpHeader.parse(data).dst_port == dhcp.CLIENT_PORT:
            self._router_mac = link.src
            self._handle_dhcp(DhcpMessage.parse(data[8:]))

    # DHCP: DISCOVER, OFFER, REQUEST, ACK

    def _ask_dhcp(self, kind: int, options: dict[int, bytes]) -> None:
        message = DhcpMessage(
            dhcp.BOOTREQUEST, dhcp.HTYPE_ETHERNET, 6, 0, 1, 0, 0, NOWHERE, NOWHERE, NOWHERE,
            NOWHERE, MAC.ljust(16, b"\0"), b"", b"", {dhcp.MESSAGE_TYPE: bytes([kind]), **options},
        ).emit()  # fmt: skip
        header = UdpHeader(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, 8 + len(message), 0)
        self._send_packet(NOWHERE, EVERYONE, PROTOCOL_UDP, header.emit() + message)

    def _handle_dhcp(self, message: DhcpMessage) -> None:
        if message.octet(dhcp.MESSAGE_TYPE) == dhcp.OFFER:
            self._ask_dhcp(
                dhcp.REQUEST,
                {
                    dhcp.REQUESTED_ADDRESS: message.yiaddr,
                    dhcp.SERVER_IDENTIFIER: message.options[dhcp.SERVER_IDENTIFIER],
                },
            )
        elif message.octet(dhcp.MESSAGE_TYPE) == dhcp.ACK:
            self.addr = message.yiaddr
            if self._fetch is not None:
                self._peer = (addr_from_text(self._fetch[0]), self._fetch[1], OWN_PORT)
                self._send_segment(SYN, options=emit_options(mss=MSS))

    # TCP: a client that asks and reads to the end, a server that answers what ends in a blank line

    def _handle_segment(self, src: bytes, header: TcpHeader, segment: bytes) -> None:
        data = segment[header.data_offset :]
        if header.flags & SYN:
            self._peer = (src, header.src_port, header.dst_port)
            self._rcv_nxt = header.seq + 1
            if header.flags & ACK:
                self._send_segment(ACK | PSH, b"GET / HTTP/1.0\r\n\r\n")
            else:
                self._send_segment(SYN | ACK, options=emit_options(mss=MSS))
        elif header.seq == self._rcv_nxt % 2**32 and (data or header.flags & FIN):
            self.received += data
            self._rcv_nxt += len(data) + bool(header.flags & FIN)
            if self._fetch is None and self.received.endswith(b"\r\n\r\n"):
                self._send_segment(ACK | PSH | FIN, b"HTTP/1.0 200 OK\r\n\r\n" + self._page)
            else:
                self._send_segment(ACK | header.flags & FIN)
            if header.flags & FIN:
                self.is_done = True
                self._done()

    def _send_segment(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        addr, port, own_port = self._peer
        header = TcpHeader(
            own_port, port, self._snd_nxt, self._rcv_nxt % 2**32, 20 + len(options), flags, 65535,
            0, 0,
        )  # fmt: skip
        bare = header.emit(options) + data
        pseudo = checksum.pseudo_sum(self.addr, addr, PROTOCOL_TCP, len(bare))
        whole = header._replace(checksum=checksum.checksum((memoryview(bare),), pseudo))
        self._snd_nxt += len(data) + bool(flags & SYN) + bool(flags & FIN)
        self._send_packet(self.addr, addr, PROTOCOL_TCP, whole.emit(options) + data)

    def _send_packet(self, src: bytes, dst: bytes, protocol: int, data: bytes) -> None:
        link = EthernetHeader(self._router_mac, MAC, ETHERTYPE_IPV4)
        ip = Ipv4Header(20, 0, 20 + len(data), 0, True, False, 0, 64, protocol, 0, src, dst)
        self._send(link.emit() + ip.emit() + data)
