"""IPv4's fragments: a datagram cut into what fits the guest's link, and a guest's put together.

On the way out the payload is not touched: each fragment is a header of its own and a slice of the
payload's vector (RFC 791 §3.2, "An Example Fragmentation Procedure"). Every fragment but the last
carries a multiple of 8 bytes. On the way in slirp.ip.reassembly does the work; a datagram is known
by source, destination, protocol and identification, and of the first fragment's header, options
included, only total_len and the fragment fields are set anew. Reassembly says nothing about DF: a
fragment with it set was fragmented by its sender.

Does not do: decide whether fragmenting is allowed. A caller whose datagram must not be fragmented
answers FRAGMENTATION_NEEDED instead. No options: a header with options is a mistake of the caller,
since this stack sends none.
"""

from __future__ import annotations

from typing import Final

from dma.iovec import IoVec
from slirp.ip.reassembly import Fragment, Reassembler
from slirp.wire.ipv4 import HEADER_LEN, MAX_PACKET, Ipv4Header

MIN_MTU: Final = 68  # bytes, RFC 791 §3.2: every link carries that much


def fragment(header: Ipv4Header, payload: IoVec, mtu: int) -> list[tuple[bytes, IoVec]]:
    """(header, payload) of each packet, in order; just one where the datagram fits in `mtu`.

    Of `header`, total_len and the fragment fields are computed, the rest is kept.
    """
    size = len(payload)
    if mtu < MIN_MTU or header.ihl != HEADER_LEN or HEADER_LEN + size > MAX_PACKET:
        raise ValueError(f"cannot fragment {size} bytes, IHL {header.ihl}, for MTU {mtu}")
    room = mtu - HEADER_LEN
    if size > room:
        room &= ~7
    packets: list[tuple[bytes, IoVec]] = []
    for start in range(0, max(size, 1), room):
        stop = min(start + room, size)
        this = header._replace(
            total_len=HEADER_LEN + stop - start,
            fragment_offset=start,
            more_fragments=stop < size,
        )
        packets.append((this.emit(), payload.slice(start, stop)))
    return packets


class Ipv4Reassembler(Reassembler[Ipv4Header]):
    """Of one port."""

    __slots__ = ()

    name = "ipv4"

    def describe(self, header: Ipv4Header) -> Fragment | None:
        if not header.is_fragment:
            return None
        datagram = (header.src, header.dst, header.protocol, header.ident)
        return Fragment(datagram, header.fragment_offset, header.more_fragments, header.ihl)

    def joined(self, header: Ipv4Header, size: int) -> Ipv4Header:
        return header._replace(total_len=header.ihl + size, more_fragments=False, fragment_offset=0)
