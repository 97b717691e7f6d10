"""Router advertisements: how guests configure themselves, RFC 4861 §6.2.

One advertisement says it all: that there is a router, the prefix to make addresses from, the MTU,
resolvers, search list, and the prefix of NAT64 where there is one. It is made once. What there is
to decide is when it goes out, port by port, since each port is a link of its own as far as its
guest can tell:

    of itself   within DELAY_MAX, INITIAL_COUNT times within INITIAL_INTERVAL, then every
                INTERVAL_MIN to INTERVAL_MAX (§6.2.4)
    solicited   0 to DELAY_MAX later (§6.2.6), to whoever asked; to all where he has no address yet,
                and then no sooner than SPACING after the last one that went to all

All times are chosen at random within these bounds. Who asks again before the answer went out has
asked once; beyond PENDING_MAX who ask at a port, all of them get one answer.

The RFC's names for these numbers are MinRtrAdvInterval and MaxRtrAdvInterval (§6.2.1),
MAX_INITIAL_RTR_ADVERTISEMENTS, MAX_INITIAL_RTR_ADVERT_INTERVAL, MAX_RA_DELAY_TIME and
MIN_DELAY_BETWEEN_RAS (§10).

Does not do: other routers' advertisements (slirp.guard says what a guest may pass on to others), a
last one with a lifetime of 0 (a port that is taken off hears nothing any more), several prefixes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from math import inf
from typing import Final, NamedTuple

from slirp.address import UNSPECIFIED_V6, Prefix
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.wire import ndp
from slirp.wire.dns import emit_name, labels_of

INTERVAL_MAX: Final = 600.0  # seconds, RFC 4861 §6.2.1
INTERVAL_MIN: Final = 0.33 * INTERVAL_MAX  # idem
INITIAL_COUNT: Final = 3  # RFC 4861 §10
INITIAL_INTERVAL: Final = 16.0  # seconds, idem
DELAY_MAX: Final = 0.5  # seconds, idem
SPACING: Final = 3.0  # seconds, idem
PENDING_MAX: Final = 8  # who may wait for an answer of their own at one port

ROUTER_LIFETIME: Final = 1800  # seconds, 3 × INTERVAL_MAX, RFC 4861 §6.2.1
NAMES_LIFETIME: Final = 1800  # seconds, RFC 8106 §5.1; of NAT64's prefix too, RFC 8781 §4.1
VALID_FOR: Final = 86400  # seconds that an address is one, as with libslirp
PREFERRED_FOR: Final = 14400  # seconds that new connections come from it, idem
HOP_LIMIT: Final = 64  # for guests' packets, RFC 1700
SLAAC_LENGTH: Final = 64  # bits of a prefix that guests make addresses from, RFC 4291 §2.5.1
SEARCH_MAX: Final = (
    1000  # bytes of search list, so that all fits into 1280; what is over is left out
)

ALL_NODES: Final = bytes.fromhex("ff020000000000000000000000000001")


class RaConfig(NamedTuple):
    """What is advertised. Nothing is checked here: slirp.Config refuses what cannot work."""

    mac: bytes
    prefix: Prefix
    mtu: int = 0  # bytes of a packet; 0: not told
    dns: tuple[bytes, ...] = ()  # 16 bytes each
    search: tuple[str, ...] = ()
    autonomous: bool = True  # guests may make their own addresses
    managed: bool = False  # addresses by DHCPv6
    other: bool = False  # the rest by DHCPv6
    routes: bool = True  # is there a way out? False: no default router
    nat64: Prefix | None = None

    @classmethod
    def of(cls, config: Config) -> RaConfig:
        """The part of a network's configuration that concerns its guests."""
        return cls(
            mac=config.mac_addr,
            prefix=config.prefix6,
            mtu=config.mtu,
            dns=(config.dns6_addr,) if config.dns_enabled and not config.restrict else (),
            search=config.search,
            managed=config.dhcp_enabled,
            other=config.dhcp_enabled,
            routes=not config.restrict,
            nat64=config.nat64_prefix,
        )

    def message(self) -> bytes:
        """The advertisement, an ICMPv6 message without its checksum."""
        flags = (ndp.MANAGED if self.managed else 0) | (ndp.OTHER if self.other else 0)
        head = ndp.RouterAdvertisement(HOP_LIMIT, flags, ROUTER_LIFETIME if self.routes else 0)
        return head.emit(self._options())

    def _options(self) -> Iterator[bytes]:
        yield ndp.link_option(ndp.SOURCE_LINK_ADDR, self.mac)
        if self.mtu:
            yield ndp.mtu_option(self.mtu)
        flags = ndp.ON_LINK
        if self.autonomous and self.prefix.length == SLAAC_LENGTH:
            flags |= ndp.AUTONOMOUS
        yield ndp.prefix_option(
            self.prefix.addr, self.prefix.length, flags, VALID_FOR, PREFERRED_FOR
        )
        if self.dns:
            yield ndp.rdnss_option(self.dns, NAMES_LIFETIME)
        domains = self._domains()
        if domains:
            yield ndp.dnssl_option(domains, NAMES_LIFETIME)
        if self.nat64 is not None:
            yield ndp.pref64_option(self.nat64.addr, self.nat64.length, NAMES_LIFETIME)

    def _domains(self) -> bytes:
        found = b""
        for name in self.search:
            octets = emit_name(labels_of(name))
            if len(found) + len(octets) <= SEARCH_MAX:
                found += octets
        return found


class Advertisement(NamedTuple):
    """Send this, with a hop limit of 255."""

    port: Hashable
    dst: bytes  # ALL_NODES, or who asked
    mac: bytes | None  # of who asked
    message: bytes  # without its checksum


class _Port:
    __slots__ = ("left", "next_at", "pending", "sent_at")

    def __init__(self) -> None:
        self.left = INITIAL_COUNT  # of the first ones
        self.next_at = inf  # when one goes to all
        self.sent_at = -inf  # when one last did
        self.pending: dict[bytes, tuple[float, bytes]] = {}  # who asked: when to answer, MAC

    def due_at(self) -> float:
        return min((at for at, _ in self.pending.values()), default=inf)


class Advertiser:
    """Advertisements on one network. `uniform(a, b)` is a random number between the two."""

    def __init__(
        self, config: RaConfig, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self.message = config.message()
        self.stats: Counter[str] = Counter()
        self._uniform = uniform
        self._ports: dict[Hashable, _Port] = {}
        self._due_at = inf  # nothing is due before; may be early

    def add_port(self, port: Hashable, now: float) -> None:
        """A port was put on the network."""
        self._schedule(self._ports.setdefault(port, _Port()), now + self._delay())

    def forget_port(self, port: Hashable) -> None:
        """It was taken off."""
        self._ports.pop(port, None)

    def handle_solicitation(
        self, solicitation: ndp.RouterSolicitation, src: bytes, mac: bytes, port: Hashable,
        now: float,
    ) -> None:  # fmt: skip
        """Somebody asks; `mac` is his frame's source."""
        if src == UNSPECIFIED_V6 and solicitation.link_addr is not None:  # RFC 4861 §6.1.1
            raise MalformedPacket("ndp", "link-layer address of nobody")
        self.stats["solicited"] += 1
        state = self._ports.get(port)
        if state is None:
            return  # of a port that is gone
        if src in state.pending:
            return
        at = now + self._delay()
        if src == UNSPECIFIED_V6 or len(state.pending) >= PENDING_MAX:
            self._schedule(state, max(at, state.sent_at + SPACING))
        else:
            state.pending[src] = at, solicitation.link_addr or mac
            self._due_at = min(self._due_at, at)

    def poll_at(self) -> float | None:
        """When the next one is due, or before."""
        return None if self._due_at == inf else self._due_at

    def handle_timeout(self, now: float) -> list[Advertisement]:
        """Those that are due."""
        if now < self._due_at:
            return []
        found: list[Advertisement] = []
        for port, state in self._ports.items():
            if state.next_at <= now:
                found.append(Advertisement(port, ALL_NODES, None, self.message))
                self._sent_to_all(state, now)
            for src, (at, mac) in list(state.pending.items()):
                if at <= now:
                    found.append(Advertisement(port, src, mac, self.message))
                    del state.pending[src]
        self._due_at = min(
            (min(state.next_at, state.due_at()) for state in self._ports.values()), default=inf
        )
        self.stats["sent"] += len(found)
        return found

    def _delay(self) -> float:
        return self._uniform(0.0, DELAY_MAX)

    def _schedule(self, state: _Port, at: float) -> None:
        """One to all at this instant, where none is due sooner."""
        state.next_at = min(state.next_at, at)
        self._due_at = min(self._due_at, state.next_at)

    def _sent_to_all(self, state: _Port, now: float) -> None:
        """RFC 4861 §6.2.4."""
        interval = self._uniform(INTERVAL_MIN, INTERVAL_MAX)
        state.left = max(state.left - 1, 0)
        state.sent_at = now
        state.next_at = now + (min(interval, INITIAL_INTERVAL) if state.left else interval)
