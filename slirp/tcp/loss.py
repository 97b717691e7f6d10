"""Loss recovery towards the guest: the scoreboard, the congestion window, what to send again.

The link is a memory bus. Nothing is lost on it by congestion, so a connection starts without a
congestion window at all, and this object exists only while the guest reports a gap, a timeout
has struck, or the window is regrowing after either. Then it behaves as on any network:

- Three duplicate ACKs, or SACK blocks over more than two segments (RFC 6675 §5), start a fast
  recovery: ssthresh becomes half the flight, and what lies below the highest SACK block and is not
  covered is sent again; without SACK, the first segment of the gap, and one more for each partial
  ACK (RFC 6582). Bytes counted rather than ACKs, since a guest may answer 64 KiB with one ACK.
  Where bytes that were first sent after all of that are SACKed and a gap is still open, what was
  sent again was lost again, and the next round begins.
- A timeout sends everything from SND.UNA again, from a window of one segment in slow start
  (RFC 5681 §3.1); the scoreboard is forgotten, as a receiver may drop what it has SACKed
  (RFC 2018 §8).
- Timestamps tell when a timeout was none: an answer to what was sent before it (a guest that stood
  still) ends the recovery, with the window as it was (RFC 3522).
- A guest that takes its window back over bytes in flight is no congestion: everything is sent
  again when it opens, without a congestion window.

The window grows by the bytes acknowledged below ssthresh, and then by an eighth of them, or one
segment a round trip if that is more: half a window is won back in six round trips. RFC 5681 alone
would need thousands on a link of 16 MiB windows, for the sake of other flows, which do not share
it. Once it holds the guest's largest window it no longer matters, and the connection drops the
object. Meanwhile no super-segment takes more than a quarter of it, so that the loss of one is
reported by the answers to the others, and not by a timeout.

Does not do: D-SACK, pacing, F-RTO (a guest without timestamps gets bytes twice); RACK and its tail
loss probe, since a guest that stands still for some milliseconds is common here and loss is not:
a tail that is lost waits for the timeout.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from slirp.tcp.seq import MASK

DUP_THRESH: Final = 3  # duplicate ACKs, RFC 5681 §3.2
SACKED_RANGES_MAX: Final = 32  # further blocks are ignored: their bytes are sent twice, no harm
SSTHRESH_MIN: Final = 10  # segments: RFC 6928's initial window, which no network minds
BURSTS_MIN: Final = 4  # super-segments in one congestion window
REGROWTH: Final = 8  # the part of the bytes acknowledged that the window grows by, above ssthresh
CWND_UNLIMITED: Final = 1 << 40  # bytes; more than any window

# What the connection is doing about a loss
WATCHING: Final = 0  # a gap was reported, or the window regrows
FAST: Final = 1  # fast recovery, RFC 6675 and RFC 6582
TIMEOUT: Final = 2  # after a timeout or a withdrawn window: all is sent again

Span = tuple[int, int]  # [left, right) in sequence space


class Loss:
    """What one connection knows of a loss. Sequence numbers; `una` is always SND.UNA."""

    __slots__ = (
        "before",
        "cwnd",
        "dup_acks",
        "forced",
        "lost_end",
        "mode",
        "ranges",
        "recover",
        "resend_from",
        "resent_ts",
        "round_end",
        "sacked",
        "ssthresh",
    )

    def __init__(self, una: int) -> None:
        self.mode = WATCHING
        self.cwnd = CWND_UNLIMITED
        self.ssthresh = CWND_UNLIMITED
        self.dup_acks = 0
        self.ranges: list[Span] = []  # SACKed, ascending, disjoint
        self.sacked = 0  # bytes that left the network without being acknowledged
        self.recover = una  # SND.MAX when recovery began
        self.round_end = una  # SND.MAX when bytes were last sent again
        self.resend_from = una  # next byte to send again
        self.lost_end = una  # bytes below and not SACKed are lost
        self.forced = False  # one segment goes out whatever cwnd says
        self.before: tuple[int, int] | None = None  # cwnd and ssthresh when the timeout struck
        self.resent_ts: int | None = None  # TSval of the first segment sent after it

    def note_sack(self, blocks: Iterable[Span], una: int, snd_max: int) -> bool:
        """Enter SACK blocks; True where they tell something new. Nonsense is left out."""
        flight = (snd_max - una) & MASK
        spans = [((left - una) & MASK, (right - una) & MASK) for left, right in self.ranges]
        for left, right in blocks:
            lo, hi = (left - una) & MASK, (right - una) & MASK
            if 0 < lo < hi <= flight:
                spans.append((lo, hi))
        merged = _merge(spans)[:SACKED_RANGES_MAX]
        self.ranges = [((una + lo) & MASK, (una + hi) & MASK) for lo, hi in merged]
        sacked = sum(hi - lo for lo, hi in merged)
        news = sacked > self.sacked
        self.sacked = sacked
        if self.mode == FAST and merged:
            self._extend(merged[-1], una)
        return news

    def _extend(self, highest: Span, una: int) -> None:
        """The highest SACK block (distances from `una`) tells what is lost by now."""
        if highest[0] > (self.lost_end - una) & MASK:
            self.lost_end = (una + highest[0]) & MASK
        if highest[1] > (self.round_end - una) & MASK and self.hole(una) is None:
            self.resend_from = una

    def trim(self, una: int) -> None:
        """SND.UNA advanced: forget what lies below."""
        kept = []
        for left, right in self.ranges:
            width = (right - left) & MASK
            beyond = (right - una) & MASK
            if 0 < beyond <= MASK >> 1:
                kept.append((una if beyond < width else left, right))
        self.ranges = kept
        self.sacked = sum((right - left) & MASK for left, right in kept)
        if (self.resend_from - una) & MASK > MASK >> 1:
            self.resend_from = una
        if (self.lost_end - una) & MASK > MASK >> 1:
            self.lost_end = una

    def hole(self, una: int) -> Span | None:
        """The first run of lost bytes that has not been sent again."""
        lo, end = (self.resend_from - una) & MASK, (self.lost_end - una) & MASK
        for left, right in self.ranges:
            start, stop = (left - una) & MASK, (right - una) & MASK
            if lo < start:
                end = min(end, start)
                break
            lo = max(lo, stop)
        if lo >= end:
            return None
        return (una + lo) & MASK, (una + end) & MASK

    def pipe(self, una: int, snd_max: int) -> int:
        """Bytes that are in the network still (RFC 6675 §4), to within what is SACKed."""
        flight = (snd_max - una) & MASK
        lo, end = (self.resend_from - una) & MASK, (self.lost_end - una) & MASK
        waiting = 0  # lost, and not sent again yet
        if lo < end:
            waiting = end - lo
            for left, right in self.ranges:
                start, stop = (left - una) & MASK, (right - una) & MASK
                waiting -= max(0, min(stop, end) - max(start, lo))
        return max(0, flight - self.sacked - waiting)

    def lost_enough(self, mss: int) -> bool:
        """Whether the reports amount to a loss (RFC 5681 §3.2, RFC 6675 §5)."""
        return self.dup_acks >= DUP_THRESH or (
            bool(self.ranges) and self.sacked > (DUP_THRESH - 1) * mss
        )

    def start_fast(self, una: int, data_end: int, snd_max: int, mss: int) -> None:
        """Fast recovery begins."""
        self.mode = FAST
        self.recover = snd_max
        self.ssthresh = self.cwnd = max(((snd_max - una) & MASK) // 2, SSTHRESH_MIN * mss)
        self._lose_first(una, data_end, mss)

    def _lose_first(self, una: int, data_end: int, mss: int) -> None:
        self.resend_from = una
        if self.ranges:
            self.lost_end = self.ranges[-1][0]
        else:
            self.lost_end = (una + min(mss, (data_end - una) & MASK)) & MASK
        self.forced = True

    def start_timeout(self, una: int, data_end: int, snd_max: int, mss: int) -> None:
        """A retransmission timeout: all is lost."""
        if self.mode != TIMEOUT:
            self.before = self.cwnd, self.ssthresh
            self.resent_ts = None
            self.ssthresh = max(((snd_max - una) & MASK) // 2, SSTHRESH_MIN * mss)
        self.cwnd = mss
        self._lose_all(una, data_end, snd_max)
        self.forced = True

    def is_untried(self, una: int) -> bool:
        """Nothing has been sent again since the last timeout."""
        return self.mode == TIMEOUT and self.resend_from == una and self.lost_end != una

    def sent_again(self, end: int, snd_max: int, tsval: int) -> None:
        """Lost bytes up to `end` went out once more."""
        self.resend_from = end
        self.round_end = snd_max
        self.forced = False
        if self.resent_ts is None:
            self.resent_ts = tsval

    def check_spurious(self, tsecr: int) -> None:
        """SND.UNA advanced by an answer to a segment of that TSval (RFC 3522 §3.2)."""
        resent_ts, before = self.resent_ts, self.before
        self.before = None
        if self.mode != TIMEOUT or before is None or resent_ts is None:
            return
        if (tsecr - resent_ts) & MASK > MASK >> 1:
            self.cwnd, self.ssthresh = before
            self.mode = WATCHING
            self.resend_from = self.lost_end

    def start_withdrawn(self, una: int, data_end: int, snd_max: int) -> None:
        """The guest took its window back over bytes in flight."""
        self.before = None
        self._lose_all(una, data_end, snd_max)

    def _lose_all(self, una: int, data_end: int, snd_max: int) -> None:
        self.mode = TIMEOUT
        self.recover = snd_max
        self.ranges = []
        self.sacked = 0
        self.dup_acks = 0
        self.resend_from = una
        self.lost_end = data_end
        self.forced = False

    def on_ack(self, acked: int, una: int, data_end: int, mss: int) -> bool:
        """SND.UNA advanced to `una`; True where older bytes are to be sent now."""
        self.trim(una)
        self.dup_acks = 0
        recovered = (una - self.recover) & MASK <= MASK >> 1
        if self.mode == FAST and not recovered:
            if not self.ranges:
                self.sacked = 0
                self._lose_first(una, data_end, mss)
            return True
        if self.mode != WATCHING and recovered:
            if self.mode == FAST:
                self.cwnd = self.ssthresh
                acked = 0
            self.mode = WATCHING
            self.resend_from = self.lost_end = una
        self._grow(acked, mss)
        return self.mode == TIMEOUT

    def _grow(self, acked: int, mss: int) -> None:
        if self.cwnd < self.ssthresh:
            self.cwnd += acked
        elif self.cwnd < CWND_UNLIMITED:
            self.cwnd += max(acked // REGROWTH, mss * min(acked, self.cwnd) // self.cwnd)

    def is_over(self, max_wnd: int) -> bool:
        """Nothing is lost, and the congestion window no longer limits anything."""
        return self.mode == WATCHING and not self.ranges and self.cwnd >= max_wnd


def _merge(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for lo, hi in sorted(spans):
        if merged and lo <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(hi, merged[-1][1])
        else:
            merged.append((lo, hi))
    return merged
