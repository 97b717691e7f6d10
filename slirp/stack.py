"""The stack's edge: one frame in, what is to be done about it out.

`handle_frame` takes a frame as the port gave it, reads its Ethernet header, lets the switch pass it
on where it is for another guest, and hands it to the family whose ethertype it has: slirp.ip has a
way in for each (`slirp.ip.layer.Input`). What the network itself answers (ARP, echo to its own
addresses, DHCP, errors) comes back as `Send`; what needs a host socket comes back as `TcpArrived`,
`UdpArrived`, `EchoArrived` or `DnsArrived`, with the payload as views of the guest's memory. The
stack sends nothing, opens nothing and reads no clock.

Every parser below raises `MalformedPacket` and nothing else; it is caught here, once, and counted
by layer and reason. A frame that is well formed and leads nowhere is counted in `refused`.

Known flows have a shorter way in (slirp.host.dispatch); what that does not know comes here.

Does not do: anything above Ethernet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.guard import is_forged
from slirp.ip.ipv4_input import Ipv4Input
from slirp.ip.ipv6_input import Ipv6Input
from slirp.ip.layer import Claim, Handler, Input, Layer
from slirp.ip.link import Link
from slirp.ip.packet import Action as IpAction
from slirp.ip.packet import Context
from slirp.switch import LearningSwitch
from slirp.wire import ethernet
from slirp.wire.ethernet import EthernetHeader

if TYPE_CHECKING:
    from nic.port import Frame
    from slirp.services.dhcp import DhcpServer
    from slirp.services.dhcpv6 import Dhcpv6Server
    from slirp.services.ra import Advertiser

HEADERS_MAX: Final = 14 + 60 + 60  # bytes that may be headers; the rest is payload for sure
UNCUT: Final = ethernet.HEADER_LEN + 65535  # bytes: the largest frame that IP allows
CHECKSUM_KNOWN: Final = 3  # virtio-net NEEDS_CSUM | DATA_VALID: nothing to verify


class Switch(NamedTuple):
    """A frame that is for another guest's port, or for all other ones (`attachment` None)."""

    attachment: Any | None
    source: Any
    frame: Frame


Action: TypeAlias = IpAction | Switch


class Stack:
    """The virtual network's own side of the wire."""

    def __init__(
        self,
        config: Config,
        dhcp: DhcpServer | None = None,
        dhcpv6: Dhcpv6Server | None = None,
        router: Advertiser | None = None,
    ) -> None:
        self.link = Link(config.mac_addr, config.mtu, dns_enabled=config.dns_enabled)
        self.guests = self.link.guests
        self.refused = self.link.refused
        self.malformed: Counter[tuple[str, str]] = Counter()
        self.switch = LearningSwitch(config.mac_addr)
        self.isolated = config.isolate  # guests do not reach each other
        self.ports = 0  # attachments on this network
        self.inputs = _inputs(self.link, config, dhcp, dhcpv6, router)
        self._by_length = {found.layer.family.addr_len: found for found in self.inputs}
        self._handlers: dict[int, Handler] = {}  # by ethertype
        self._claims: dict[int, Claim] = {}
        for found in self.inputs:
            self._handlers.update(found.handlers)
            self._claims.update(found.claims)

    @property
    def lengths(self) -> Collection[int]:
        """Bytes of an address, of each family on this network."""
        return self._by_length.keys()

    def layer(self, addr: bytes) -> Layer:
        """The family of this address, on this network."""
        return self._by_length[len(addr)].layer

    def solicit(self, addr: bytes) -> tuple[bytes, ...]:
        """The headers of a frame that asks who has `addr`."""
        return self._by_length[len(addr)].solicit(addr)

    def handle_frame(self, frame: Frame, attachment: Any, now: float) -> list[Action]:
        """What to do about one frame."""
        try:
            return self._handle_ethernet(frame, attachment, now)
        except MalformedPacket as error:
            self.malformed[error.layer, error.reason] += 1
            return []

    def _handle_ethernet(self, frame: Frame, attachment: Any, now: float) -> list[Action]:
        iov = frame.iov
        size = len(iov)
        own = self.link.mac
        unlabelled: bool = attachment.unlabelled
        most = max(ethernet.HEADER_LEN + self.link.mtu, attachment.port.max_frame)
        if size > most and unlabelled and bytes(iov.slice(0, len(own))) == own:
            most = UNCUT  # for us, and perhaps a large segment that nobody has cut
        ethernet.check_length(size, most)
        head, _ = iov.pull(min(size, HEADERS_MAX))
        header = EthernetHeader.parse(head)
        actions: list[Action] = []
        self.switch.learn(header.src, attachment)
        if self.ports > 1:
            actions += self._switch(header, head, frame, attachment)
        if header.dst != own and not ethernet.is_group(header.dst):
            return actions  # another station's
        handler = self._handlers.get(header.ethertype)
        if handler is None:
            self.refused["ethertype"] += 1
            return actions
        vnet = frame.vnet
        gso_size = int.from_bytes(vnet[4:6], "little") if vnet[1] else 0
        summed = bool(vnet[0] & CHECKSUM_KNOWN)
        context = Context(attachment, header, summed, unlabelled, gso_size, now)
        actions += handler(context, iov, head)
        return actions

    def _switch(
        self, header: EthernetHeader, head: memoryview, frame: Frame, attachment: Any
    ) -> Sequence[Action]:
        if header.dst == self.link.mac:
            return []
        if self.isolated:
            self.refused["isolated"] += not ethernet.is_group(header.dst)
            return []
        if is_forged(header, head, attachment, self.link.mac, self._claims):
            self.refused["forged"] += 1
            return []
        target = self.switch.lookup(header.dst)  # None for a group: no source is one
        return [] if target is attachment else [Switch(target, attachment, frame)]

    def add_port(self, attachment: Any, now: float) -> None:
        """A port was put on the network."""
        self.ports += 1
        for found in self.inputs:
            found.add_port(attachment, now)

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        self.ports -= 1
        self.link.forget_port(attachment)
        self.switch.forget_port(attachment)
        for found in self.inputs:
            found.forget_port(attachment)

    def poll_at(self) -> float | None:
        """When something incomplete is given up."""
        due = [at for found in self.inputs if (at := found.poll_at()) is not None]
        return min(due, default=None)

    def handle_timeout(self, now: float) -> list[Action]:
        """Give it up."""
        return [action for found in self.inputs for action in found.handle_timeout(now)]


def _inputs(
    link: Link,
    config: Config,
    dhcp: DhcpServer | None,
    dhcpv6: Dhcpv6Server | None,
    router: Advertiser | None,
) -> tuple[Input, ...]:
    """The families that guests have."""
    found: list[Input] = []
    if config.has_ipv4:
        found.append(Ipv4Input(link, config, dhcp))
    if config.has_ipv6:
        ipv6 = Ipv6Input(link, config)
        ipv6.services.dhcp, ipv6.services.router = dhcpv6, router
        found.append(ipv6)
    return tuple(found)
