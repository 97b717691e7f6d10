"""What is received from the guest: which bytes are taken, and the window that it is offered.

Bytes in order are taken as they come, up to what is kept ahead of its turn (`slirp.tcp.ahead`);
then RCV.NXT jumps over what was kept. The window is the room that the relay states with
`set_room`; its right edge never moves left, even where the room shrinks, since a guest may have
bytes under way, and it opens by whole segments (RFC 9293 §3.8.6.2.2). With a scale, the field
rounds the window down; what lies between is accepted all the same (RFC 7323 §2.4).

The fields are RFC 9293's variables without their RCV: `nxt` is RCV.NXT, `adv` the right edge
RCV.NXT + RCV.WND; `told` is the edge that the guest knows, and `last_ack` is RFC 7323's
Last.ACK.sent.

Does not do: keep bytes (the relay's), headers, states.
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.ahead import Ahead, Shelf
from slirp.tcp.segment import ACK_LATER, ACK_NOW, KEEP
from slirp.tcp.seq import MASK, distance

WINDOW_MAX: Final = 0xFFFF  # bytes, unscaled


class Receive:
    """The receive sequence space of one connection (RFC 9293 §3.3.1)."""

    __slots__ = (
        "_own_mss",
        "_room_max",
        "adv",
        "ahead",
        "irs",
        "last_ack",
        "nxt",
        "shelf",
        "told",
        "wscale",
    )

    def __init__(self, nxt: int, own_mss: int, wscale: int, room: int) -> None:
        """`own_mss`: as offered to the guest; `room`: bytes that the host's side takes."""
        self.irs = (nxt - 1) & MASK  # the guest's initial number
        self.nxt = nxt
        self.adv = (nxt + min(room, WINDOW_MAX)) & MASK  # right edge; never moves left
        self.wscale = wscale
        self.told = self.adv  # right edge that the guest was last told
        self.last_ack = nxt
        self.ahead: Ahead | None = None
        self.shelf: Shelf | None = None  # shared with other connections, where there are any
        self._own_mss = own_mss
        self._room_max = room  # bytes, the most that set_room() ever said

    def start(self, irs: int) -> None:
        """The guest's SYN came in answer to ours."""
        room = min(self.window_left(), WINDOW_MAX << self.wscale)
        self.irs = irs
        self.nxt = self.last_ack = (irs + 1) & MASK
        self.adv = self.told = (self.nxt + room) & MASK

    def set_room(self, room: int) -> None:
        """Bytes that the host's side takes now (RFC 9293 §3.8.6.2.2)."""
        room = min(room, WINDOW_MAX << self.wscale)
        if room > self._room_max:
            self._room_max = room
        more = room - ((self.adv - self.nxt) & MASK)
        if more >= self._own_mss or (more > 0 and 2 * more >= self._room_max):
            self.adv = (self.nxt + room) & MASK

    def update_due(self) -> bool:
        """Has the window opened so much that the guest must be told? At least twofold."""
        more = (self.adv - self.told) & MASK
        if not more:
            return False
        told = max(0, distance(self.told, self.nxt))
        return more >= told and more >= min(self._own_mss, self._room_max // 2)

    def unacknowledged(self) -> int:
        """Bytes (and FIN) taken from the guest since the last acknowledgement went out."""
        return (self.nxt - self.last_ack) & MASK

    def window_left(self) -> int:
        """Bytes of the offered window that the guest has not used."""
        return (self.adv - self.nxt) & MASK

    def syn_window(self) -> int:
        """The window field of a SYN, which is never scaled (RFC 7323 §2.2)."""
        window = min(self.window_left(), WINDOW_MAX)
        self.told = (self.nxt + window) & MASK
        return window

    def take_fin(self) -> None:
        """The guest's FIN is next."""
        self.nxt = (self.nxt + 1) & MASK
        if self.nxt == (self.adv + 1) & MASK:
            self.adv = self.nxt  # the FIN stood at the window's end
        self.ahead = None

    def take_in_order(self, skip: int, stop: int, fin: bool) -> tuple[int, int, int, bool]:
        """(skip, take, events, whether the FIN is next) for bytes from RCV.NXT on."""
        take = max(0, stop - skip)
        events = ACK_LATER if take or fin else ACK_NOW
        ahead = self.ahead
        if ahead is None:
            self.nxt = (self.nxt + take) & MASK
            return skip, take, events, fin
        gap = ahead.gap(self.nxt)
        if take > gap:
            take = gap
            fin = False
        if ahead.fin_seq is not None:
            take = min(take, (ahead.fin_seq - self.nxt) & MASK)
        self.nxt = ahead.advance((self.nxt + take) & MASK)
        fin = fin or self.nxt == ahead.fin_seq
        if not ahead.ranges and ahead.fin_seq is None:
            self.ahead = None
        return skip, take, events | ACK_NOW, fin  # RFC 5681 §4.2: at once, when a gap closes

    def take_ahead(self, seq: int, stop: int, fin: bool) -> tuple[int, int, int]:
        """(skip, take, events) for bytes beyond a gap: the relay's to keep, within bounds."""
        ahead = self.ahead
        if ahead is None:
            ahead = self.ahead = Ahead(self.shelf)
        if ahead.fin_seq is not None:
            stop = min(stop, distance(ahead.fin_seq, seq))
        end = (seq + stop) & MASK
        if fin and ahead.fin_seq is None and not ahead.reaches_beyond(end, self.nxt):
            ahead.fin_seq = end
        span = ahead.add(seq, end, self.nxt) if stop > 0 else None
        if not ahead.ranges and ahead.fin_seq is None:
            self.ahead = None
        if span is None:
            return 0, 0, ACK_NOW
        return (span[0] - seq) & MASK, (span[1] - span[0]) & MASK, ACK_NOW | KEEP
