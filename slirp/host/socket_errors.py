"""What the kernel tells a host socket about its peer, as the ICMP error that the guest gets.

ICMP errors from outside are in the socket's error queue with the address that sent them
(slirp.host.sockets), and become an error from that address, around the guest's own packet. Where
the socket is not of the guest's family they are said in the guest's (slirp.ip.icmp_translation).

Does not do: what the host refuses by itself (LOCAL_CAUSES, `Layer.unreachable_by_host`).
"""

from __future__ import annotations

from slirp.host.sockets import SocketError, addr_of
from slirp.ip.icmp_translation import Error, translate
from slirp.ip.layer import Layer
from slirp.ip.neighbours import Guest
from slirp.ip.packet import Send


def icmp_from_error(
    layer: Layer, guest: Guest, error: SocketError, protocol: int, dst: bytes, quoted: bytes
) -> list[Send]:
    """The ICMP error that the host's socket had, for the guest whose packet to `dst` caused it.

    `quoted` is the guest's packet from behind its IP header on.
    """
    if error.kind < 0:
        return []
    said: Error | None = (error.kind, error.code, error.rest)
    if len(addr_of(error.peer)) != layer.family.addr_len:
        said = translate((error.kind, error.code, error.rest), layer.family.addr_len)
    if said is None:
        return []
    offender = layer.nat.gateway if error.offender is None else layer.nat.inward(error.offender)
    return layer.pass_on_error(guest, offender, *said, protocol, dst, quoted)
