"""What the board tells the guest's program, and what the program tells the board.

Two blocks in RAM below the program, where a boot PROM would keep its variables: parameters at
0x2000, written before it starts; the result at 0x3000, written as it runs, so that progress can be
read at any time. Everything is big-endian. firmware/prom.h has the same layouts; both change
together, with VERSION, which the program checks.
"""

from __future__ import annotations

import ipaddress
import secrets
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from slirp.errors import ConfigError

MAGIC: Final = 0x534C5250  # "SLRP"
VERSION: Final = 3
PARAMETERS_ADDR: Final = 0x2000
RESULT_ADDR: Final = 0x3000

HOST_MAX: Final = 255  # bytes; the program wants a zero behind
URL_MAX: Final = 1023
RING_MAX: Final = 128  # descriptors, Am7990
RX_BUFFER_MIN: Final = 64  # bytes, Am7990: a chain's first buffer
RX_BUFFER_MAX: Final = 4096  # bytes: BCNT has 12 bits
WINDOW_MIN: Final = 1024  # bytes
WINDOW_MAX: Final = 1 << 18  # bytes, TCP_WINDOW_MAX in firmware/tcp.h
UNKNOWN: Final = (1 << 64) - 1  # a length that no header announced

PARAMETERS: Final = struct.Struct(">4I 6sH 8I 5I 2I 256s1024s")
RESULT: Final = struct.Struct(">4I 3Q 32s 6I 3I 7I I 5I 4I 2Q 32s 16s16s16s")

STATUSES: Final = (
    *("running", "ok", "no-lease", "bad-url", "no-such-name", "no-resolver", "no-route"),
    *("unreachable", "refused", "timed-out", "reset", "truncated", "bad-response", "redirect"),
    *("http-error", "bad-parameters", "no-lance", "no-disk", "disk-full", "disk-error"),
)
COUNTERS: Final = (
    *("ping_sent", "ping_received", "ping_us"),
    *("rx_frames", "rx_dropped", "rx_descriptors", "tx_frames", "tx_full", "interrupts"),
    *("restarts", "waits"),
    *("tcp_segments", "tcp_acks", "tcp_out_of_order", "tcp_retransmits", "tcp_bad_checksums"),
    *("disk_commands", "disk_interrupts"),
)


class StaticAddress(NamedTuple):
    """For a network without DHCP."""

    address: str
    netmask: str = "255.255.255.0"
    router: str = "0.0.0.0"
    dns: str = "0.0.0.0"
    mtu: int = 1500  # bytes of an IP packet


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the guest is to do, and with which rings."""

    url: str = ""  # what to fetch; empty: nothing
    connect_host: str = ""  # name or address to connect to instead of the URL's host
    mac: bytes = b"\x08\x00\x20\x5a\x00\x15"
    static: StaticAddress | None = None  # None: ask DHCP
    pings: int = 3  # echo requests to the router
    serve_for: float = 0.0  # seconds to stay and answer pings when the rest is done
    bswp: int = 1  # CSR3.BSWP: 0 exchanges the byte lanes of all frame data
    rx_buffer: int = 1544  # bytes
    rx_entries: int = RING_MAX
    tx_entries: int = 64
    scatter: bool = False  # neighbouring DVMA pages are not neighbours in RAM
    window: int = 1 << 17  # bytes, TCP's receive window
    ack_every: int = 2  # full-sized segments
    ipv6: bool = False  # speak IPv6 and nothing else; a router's advertisement configures it
    disk: bool = False  # what is fetched goes to the first disk, and is read back
    seed: int | None = None  # of the guest's random numbers; None: the host's

    def pack(self, ram_len: int) -> bytes:
        """The block as the program reads it. Raises ConfigError."""
        static = self.static or StaticAddress("0.0.0.0", "0.0.0.0", mtu=0)
        addresses = [_address(text) for text in static[:4]]
        return PARAMETERS.pack(
            *(MAGIC, VERSION, ram_len, _seed(self.seed)),
            *(_mac(self.mac), int(self.scatter)),
            *(_ring("rx_entries", self.rx_entries), _ring("tx_entries", self.tx_entries)),
            _multiple_of_4("rx_buffer", self.rx_buffer, RX_BUFFER_MIN, RX_BUFFER_MAX),
            _within("bswp", self.bswp, 0, 1),
            _within("window", self.window, WINDOW_MIN, WINDOW_MAX),
            _within("ack_every", self.ack_every, 1, 1000),
            _within("pings", self.pings, 0, 1000),
            _within("serve_for", int(self.serve_for * 1000), 0, 1_000_000),
            *(*addresses, _within("mtu", static.mtu, 0, 1500), int(self.disk), int(self.ipv6)),
            _text("connect_host", self.connect_host, HOST_MAX),
            _text("url", self.url, URL_MAX),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `status` is one of STATUSES."""

    status: str
    http_status: int  # 0: no answer
    octets: int  # of the body
    expected: int | None  # Content-Length
    seconds: float  # guest time from the SYN to the end of the body
    sha256: str  # of the body, hexadecimal; empty unless the fetch came to its end
    address: str
    router: str
    dns: str
    mtu: int
    lease: int  # seconds; 0 with a static address
    counters: dict[str, int]
    disk_blocks: int = 0  # of 512 bytes; 0: no disk
    disk_written: int = 0  # bytes of blocks
    disk_read: int = 0
    disk_sha256: str = ""  # of what was fetched, read back from the disk; empty unless it was

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @classmethod
    def unpack(cls, block: bytes) -> Result:
        """The block as the program wrote it, so far."""
        fields = RESULT.unpack(block)
        status, http_status, octets, expected, fetch_us, digest = fields[2:8]
        address, _netmask, router, dns, mtu, lease = fields[8:14]
        counters = fields[14 : 14 + len(COUNTERS)]
        blocks, _reserved, written, read, disk_digest, *own = fields[14 + len(COUNTERS) :]
        if any(own[0]):  # of IPv6
            address, router, dns = own
        return cls(
            status=STATUSES[status] if status < len(STATUSES) else f"status {status}",
            http_status=http_status,
            octets=octets,
            expected=None if expected == UNKNOWN else expected,
            seconds=fetch_us / 1e6,
            sha256=digest.hex() if any(digest) else "",
            address=str(ipaddress.ip_address(address)),
            router=str(ipaddress.ip_address(router)),
            dns=str(ipaddress.ip_address(dns)),
            mtu=mtu,
            lease=lease,
            counters=dict(zip(COUNTERS, counters, strict=True)),
            disk_blocks=blocks,
            disk_written=written,
            disk_read=read,
            disk_sha256=disk_digest.hex() if any(disk_digest) else "",
        )


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ConfigError(f"{name} {value}: choose {least} to {most}")
    return value


def _multiple_of_4(name: str, value: int, least: int, most: int) -> int:
    if value % 4 or not least <= value <= most:
        raise ConfigError(f"{name} {value}: choose a multiple of 4 from {least} to {most}")
    return value


def _seed(seed: int | None) -> int:
    return secrets.randbits(32) if seed is None else _within("seed", seed, 0, 0xFFFFFFFF)


def _ring(name: str, entries: int) -> int:
    """RLEN or TLEN: the logarithm."""
    if not 1 <= entries <= RING_MAX or entries & (entries - 1):
        raise ConfigError(f"{name} {entries}: choose a power of two from 1 to {RING_MAX}")
    return entries.bit_length() - 1


def _mac(mac: bytes) -> bytes:
    if len(mac) != 6 or mac[0] & 1:
        raise ConfigError(f"mac {mac.hex(':')}: choose 6 bytes, the first one even")
    return mac


def _address(text: str) -> int:
    try:
        return int(ipaddress.IPv4Address(text))
    except ValueError:
        raise ConfigError(f"{text!r}: not an IPv4 address") from None


def _text(name: str, text: str, most: int) -> bytes:
    try:
        octets = text.encode("ascii")
    except UnicodeEncodeError:
        raise ConfigError(f"{name} {text!r}: ASCII only; escape the rest") from None
    if len(octets) > most or b"\0" in octets:
        raise ConfigError(f"{name}: {len(octets)} bytes, at most {most}, none of them zero")
    return octets
