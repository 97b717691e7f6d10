"""Flows and guests as people see them: the relays' objects as plain values, made when asked for.

Nothing here is counted on the way of a packet. How many bytes a TCP flow has moved is in its
sequence numbers, which wrap at 4 GiB; the host's kernel counts the same bytes in 64 bits
(tcp_info), differs by what is under way, and so says how often they have wrapped. A flow whose
host side is a Unix socket has no such witness: its counts are right below 4 GiB.

`octets_to_guest` are those that the guest has acknowledged, `octets_to_host` those taken from it.
`rtt` is to the guest, `host_rtt` the kernel's to the host's peer; seconds, None where not measured.
Addresses are the guest's view (`remote`) and the host's (`host_local`, `host_remote`).

Does not do: names (slirp.host.naming), rates (slirp.control.rates has two instants to compare),
owners of sockets, which a network in a sandbox cannot see (slirp.control.owners).
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from slirp.address import Endpoint, addr_to_text, mac_to_text
from slirp.flow import ends_of
from slirp.host.tcp_farewell import unsent
from slirp.tcp.connection import State
from slirp.tcp.seq import MASK

if TYPE_CHECKING:
    from slirp.host.tcp_flow import TcpFlow
    from slirp.host.udp_mapping import Mapping
    from slirp.ip.neighbours import Guest

# struct tcp_info, linux/tcp.h: rtt in µs, total_retrans, bytes_acked, bytes_received
_INFO_LEN: Final = 136
_RTT: Final = struct.Struct("=I")
_RTT_AT: Final = 68
_RESENT_AT: Final = 100
_BYTES: Final = struct.Struct("=QQ")
_BYTES_AT: Final = 120
WRAP: Final = 1 << 32
_FIN_TAKEN: Final = (State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)


def describe_tcp(flow: TcpFlow, now: float) -> dict[str, Any]:
    """One TCP connection."""
    guest, remote = ends_of(flow.key)
    conn = flow.conn
    send, receive, life = conn.send, conn.receive, conn.life
    acked, received, host_rtt, resent = _kernel_counts(flow.sock)
    to_guest = max(0, ((send.una - send.iss) & MASK) - 1 - send.fin_acked())
    to_host = max(0, ((receive.nxt - receive.irs) & MASK) - 1 - (life.state in _FIN_TAKEN))
    srtt = send.timer.srtt
    return {
        "id": f"t{flow.number}",
        "proto": "tcp",
        "state": conn.state.value,
        "direction": "in" if flow.incoming else "out",
        "guest": str(guest),
        "remote": str(remote),
        "port": flow.guest.attachment.name,
        "host_local": _name(flow.sock, socket.socket.getsockname),
        "host_remote": _name(flow.sock, socket.socket.getpeername),
        "octets_to_guest": widened(to_guest, received),
        "octets_to_host": widened(to_host, acked),
        "age": _seconds(now - flow.opened_at),
        "idle": _seconds(now - life.heard_at),
        "rtt": _seconds(srtt) if srtt >= 0 else None,
        "host_rtt": host_rtt,
        "guest_window": send.wnd,
        "offered_window": receive.window_left(),
        "in_flight": send.flight,
        "mss": send.mss,
        "retransmitted": send.resent,
        "host_retransmitted": resent,
        "unsent_by_host": 0 if flow.sock is None else unsent(flow.sock),
    }


def describe_udp(mapping: Mapping, now: float) -> dict[str, Any]:
    """One UDP mapping; `remote` is whom the guest wrote to last."""
    remote = None
    if mapping.to_key is not None:
        addr, port = mapping.to_key
        remote = str(Endpoint(mapping.layer.nat.inward(addr), port))
    return {
        "id": f"u{mapping.number}",
        "proto": "udp",
        "state": "mapped",
        "direction": "out",
        "guest": str(Endpoint(mapping.guest.addr, mapping.port)),
        "remote": remote,
        "port": mapping.guest.attachment.name,
        "host_local": _name(mapping.sock, socket.socket.getsockname),
        "host_remote": None,
        "age": _seconds(now - mapping.opened_at),
        "idle": _seconds(now - mapping.used_at),
    }


def describe_guest(guest: Guest, now: float) -> dict[str, Any]:
    """One address on the virtual wire."""
    return {
        "address": addr_to_text(guest.addr),
        "mac": mac_to_text(guest.mac),
        "port": guest.attachment.name,
        "seen": _seconds(now - guest.seen_at),
    }


def widened(low: int, near: int | None) -> int:
    """The number that ends in these 32 bits and is nearest to `near`."""
    if near is None:
        return low
    wraps = (near - low + WRAP // 2) // WRAP
    return low + max(0, wraps) * WRAP


def _kernel_counts(
    sock: socket.socket | None,
) -> tuple[int | None, int | None, float | None, int | None]:
    """Bytes that the host's peer has acknowledged and sent, the RTT to it, segments sent again."""
    if sock is None or sock.family == socket.AF_UNIX:
        return None, None, None, None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_LEN)
    except OSError:
        return None, None, None, None
    if len(info) < _INFO_LEN:  # Linux before 4.2
        return None, None, None, None
    acked, received = _BYTES.unpack_from(info, _BYTES_AT)
    (rtt,), (resent,) = _RTT.unpack_from(info, _RTT_AT), _RTT.unpack_from(info, _RESENT_AT)
    return acked, received, rtt / 1e6 if rtt else None, resent


def _name(sock: socket.socket | None, of: Any) -> str | None:
    """An end of a host's socket as text; None: it has none, or is no longer connected."""
    if sock is None or sock.family == socket.AF_UNIX:
        return None
    try:
        addr, port = of(sock)[:2]
    except OSError:
        return None
    return f"[{addr}]:{port}" if ":" in addr else f"{addr}:{port}"


def _seconds(value: float) -> float:
    return round(value, 6)
