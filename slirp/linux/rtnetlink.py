"""IPv6 addresses and routes of a device, by rtnetlink(7).

IPv4's are set by ioctl (slirp.linux.netns), which for IPv6 has no way to say IFA_F_NODAD: without
it an address is not to be used for a second, while the kernel asks whether somebody else has it. On
a link with nobody else but us the answer is known.

A request is one message; the kernel's acknowledgment carries its error, which is raised as OSError.

Does not do: reading tables, links, IPv4.
"""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Final

NLMSG_ERROR: Final = 2  # linux/netlink.h
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_CREATE: Final = 0x400
RTM_NEWADDR: Final = 20  # linux/rtnetlink.h
RTM_NEWROUTE: Final = 24
RT_TABLE_MAIN: Final = 254
RTPROT_BOOT: Final = 3
RT_SCOPE_UNIVERSE: Final = 0
RTN_UNICAST: Final = 1
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
IFA_ADDRESS: Final = 1  # linux/if_addr.h
IFA_FLAGS: Final = 8
IFA_F_NODAD: Final = 0x02
AF_INET6: Final = 10  # linux/socket.h

_MESSAGE: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr: length, type
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ERROR: Final = struct.Struct("=i")
REPLY_MAX: Final = 8192  # bytes


def add_address(device: str, address: str, prefix_len: int) -> None:
    """Give the device an IPv6 address that may be used at once. Raises OSError."""
    index = socket.if_nametoindex(device)
    body = _ADDRESS.pack(AF_INET6, prefix_len, IFA_F_NODAD, RT_SCOPE_UNIVERSE, index)
    body += _attribute(IFA_ADDRESS, _packed(address))
    body += _attribute(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
    _request(RTM_NEWADDR, body)


def add_default_route(device: str, gateway: str) -> None:
    """Have everything that is elsewhere leave by this gateway. Raises OSError."""
    index = socket.if_nametoindex(device)
    body = _ROUTE.pack(
        AF_INET6, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    )
    body += _attribute(RTA_GATEWAY, _packed(gateway))
    body += _attribute(RTA_OIF, struct.pack("=I", index))
    _request(RTM_NEWROUTE, body)


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6, address)


def _attribute(kind: int, value: bytes) -> bytes:
    """Its value here is always a multiple of four bytes long, so there is no padding."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value


def _request(kind: int, body: bytes) -> None:
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    message = _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.sendto(message, (0, 0))
        reply = sock.recv(REPLY_MAX)
    _, answered, *_ = _MESSAGE.unpack_from(reply)
    (number,) = _ERROR.unpack_from(reply, _MESSAGE.size)
    if answered != NLMSG_ERROR or number:
        raise OSError(-number, os.strerror(-number))
