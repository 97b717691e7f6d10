"""The receiving half of a TCP connection: what is taken, and the window that the guest is offered.

Octets in order are taken as they come, up to what is kept ahead of its turn (`slirp.tcp.ahead`);
then RCV.NXT jumps over what was kept. The window is the room that the relay states with
`set_room`; its right edge never moves left, even where the room shrinks, since a guest may have
octets under way, and it opens by whole segments (RFC 9293 §3.8.6.2.2). With a scale, the field
rounds the window down; what lies between is accepted all the same (RFC 7323 §2.4).
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.ahead import Ahead, Shelf
from slirp.tcp.segment import ACK_LATER, ACK_NOW, KEEP, Segment
from slirp.tcp.send import Sender
from slirp.tcp.seq import MASK, distance

WINDOW_MAX: Final = 0xFFFF  # octets, unscaled


class Receiver(Sender):
    """The half of a Connection that receives."""

    __slots__ = ("_own_mss", "_room_max", "shelf")

    def __init__(
        self, iss: int, rcv_nxt: int, own_mss: int, rcv_wscale: int, room: int, ts_offset: int
    ) -> None:
        super().__init__(iss, rcv_nxt, min(room, WINDOW_MAX), ts_offset)
        self.rcv_wscale = rcv_wscale
        self.shelf: Shelf | None = None  # shared with other connections, where there are any
        self._own_mss = own_mss  # octets, as offered to the guest
        self._room_max = room  # octets, the most that set_room() ever said

    def set_room(self, room: int) -> None:
        """Octets that the host's side takes now (RFC 9293 §3.8.6.2.2)."""
        room = min(room, WINDOW_MAX << self.rcv_wscale)
        if room > self._room_max:
            self._room_max = room
        more = room - ((self.rcv_adv - self.rcv_nxt) & MASK)
        if more >= self._own_mss or (more > 0 and 2 * more >= self._room_max):
            self.rcv_adv = (self.rcv_nxt + room) & MASK

    def update_due(self) -> bool:
        """Has the window opened so much that the guest must be told? At least twofold."""
        more = (self.rcv_adv - self._told) & MASK
        if not more:
            return False
        told = max(0, distance(self._told, self.rcv_nxt))
        return more >= told and more >= min(self._own_mss, self._room_max // 2)

    def unacknowledged(self) -> int:
        """Octets (and FIN) taken from the guest since the last acknowledgement went out."""
        return (self.rcv_nxt - self._last_ack) & MASK

    def window_left(self) -> int:
        """Octets of the offered window that the guest has not used."""
        return (self.rcv_adv - self.rcv_nxt) & MASK

    def _take_in_order(self, skip: int, stop: int, fin: bool) -> tuple[int, int, int, bool]:
        """(skip, take, events, whether the FIN is next) for octets from RCV.NXT on."""
        take = max(0, stop - skip)
        events = ACK_LATER if take or fin else ACK_NOW
        ahead = self._ahead
        if ahead is not None:
            events |= ACK_NOW  # RFC 5681 §4.2: at once, when a gap closes
            gap = ahead.gap(self.rcv_nxt)
            if take > gap:
                take = gap
                fin = False
            if ahead.fin_seq is not None:
                take = min(take, (ahead.fin_seq - self.rcv_nxt) & MASK)
        nxt = (self.rcv_nxt + take) & MASK
        if ahead is not None:
            nxt = ahead.advance(nxt)
            fin = fin or nxt == ahead.fin_seq
            if not ahead.ranges and ahead.fin_seq is None:
                self._ahead = None
        self.rcv_nxt = nxt
        return skip, take, events, fin

    def _take_ahead(self, seg: Segment, stop: int, fin: bool) -> tuple[int, int, int]:
        """Octets beyond a gap: for the relay to keep, where the bounds allow."""
        ahead = self._ahead
        if ahead is None:
            ahead = self._ahead = Ahead(self.shelf)
        if ahead.fin_seq is not None:
            stop = min(stop, distance(ahead.fin_seq, seg.seq))
        end = (seg.seq + stop) & MASK
        if fin and ahead.fin_seq is None and not ahead.reaches_beyond(end, self.rcv_nxt):
            ahead.fin_seq = end
        span = ahead.add(seg.seq, end, self.rcv_nxt) if stop > 0 else None
        if not ahead.ranges and ahead.fin_seq is None:
            self._ahead = None
        if span is None:
            return 0, 0, ACK_NOW
        return (span[0] - seg.seq) & MASK, (span[1] - span[0]) & MASK, ACK_NOW | KEEP
