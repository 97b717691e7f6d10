"""The back-end's side of vhost-user: what each message does. No socket is touched here.

`handle(message)` does what the front-end asks and returns the reply, if it is due one. It keeps the
memory table, the rings' settings and the dirty log, and starts and stops the rings of a
`NetDevice` (nic/virtio/device.py). What must be waited for or written to is told to the `Events`
that the port implements: kick descriptors that come and go, call descriptors to be rung.

Memory may change while rings run (SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG): rings are bound anew
to where their addresses lead now, and one whose memory is gone rests until it is back. Buffers are
looked up when they are used, so nothing else needs to be told.

Offered beside the network's features: multiple queues, replies to every request (REPLY_ACK), memory
regions one by one (CONFIGURE_MEM_SLOTS), RESET_DEVICE, STATUS, the MTU, a shared dirty log with
which a machine can migrate, and the record of buffers in flight (INFLIGHT_SHMFD), with which one
survives this process: where a front-end brings it, the rings keep it (tracked.py). QEMU's network
devices agree to it and bring none; then a split ring goes on from the used index, as buffers are
used in the order in which they were made available. A front-end that asks for something else, or
what none may ask for, has broken the protocol (`BadMessage`) and its connection is over; what it
may ask for and cannot have (`Refused`) is an answer other than zero, if it wants one.

Front-ends differ in whose the device's configuration is. QEMU's is its own, with a control queue
that it serves, so it may be offered what that is for. Those that take the device as theirs before
they ask for anything (SET_OWNER, then GET_FEATURES: crosvm, Cloud Hypervisor) hand the features on
to the guest as they are. A driver refuses a device with MQ or GUEST_ANNOUNCE and without a control
queue, so these are not offered there. crosvm reads the configuration space from here as well
(GET_CONFIG), though it was not offered: QEMU would warn of that.

Does not do: IOMMU, a control queue, changes of the configuration, postcopy, back-end requests; RARP
after a migration (the guest announces itself).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from dma.transfer import DmaFault
from nic.vhost_user.inflight import InflightFile, Shape, make_file
from nic.vhost_user.log import DirtyLog
from nic.vhost_user.memory import SLOTS_MAX, MemoryTable
from nic.vhost_user.messages import (
    ADDRESS,
    CONFIG,
    CONFIG_MAX,
    INDEX_MASK,
    INFLIGHT,
    LOG,
    NEED_REPLY,
    NO_FD,
    REGION,
    REGIONS_MAX,
    STATE,
    U64,
    BadMessage,
    MemoryRegion,
    Message,
    Request,
    reply,
)
from nic.vhost_user.tracked import TrackedPackedRing, TrackedSplitRing
from nic.vhost_user.vring import CLOSED, Place, Vring
from nic.virtio.chain import DESCRIPTORS, DEVICE, SIZE_MAX, Areas, BrokenRing, Ring, Wrote
from nic.virtio.device import NetDevice, way_of
from nic.virtio.features import GUEST_ANNOUNCE, LINK_UP, MQ, NET_CONFIG, OFFERED, Features
from nic.virtio.packed import PackedRing
from nic.virtio.split import SplitRing

F_LOG_ALL: Final = 1 << 26
F_PROTOCOL_FEATURES: Final = 1 << 30

P_MQ: Final = 1 << 0
P_LOG_SHMFD: Final = 1 << 1
P_REPLY_ACK: Final = 1 << 3
P_MTU: Final = 1 << 4
P_INFLIGHT_SHMFD: Final = 1 << 12
P_RESET_DEVICE: Final = 1 << 13
P_CONFIGURE_MEM_SLOTS: Final = 1 << 15
P_STATUS: Final = 1 << 16
PROTOCOL_FEATURES: Final = (
    P_MQ | P_LOG_SHMFD | P_REPLY_ACK | P_MTU | P_INFLIGHT_SHMFD | P_RESET_DEVICE
    | P_CONFIGURE_MEM_SLOTS | P_STATUS
)  # fmt: skip

PAIRS_MAX: Final = 16  # queue pairs of one machine

NUMBERS: Final = ("index", "size", "base", "is_kicked", "is_enabled")  # of a Vring
EVENTFDS: Final = ("kick", "call", "error")  # idem


class Reply(NamedTuple):
    """A whole message. The descriptor goes with it and is closed then; it is whoever sends it's."""

    data: bytes
    fd: int = CLOSED


Handler = Callable[[Message], bytes | tuple[bytes, int] | None]


class Refused(Exception):
    """Not an error of the protocol, but not to be had."""


class Events(Protocol):
    """What a port does for its back-end."""

    def kick_changed(self, index: int, old: int, new: int) -> None:
        """Wait for another descriptor; the old one is closed afterwards."""

    def call(self, fd: int) -> None:
        """Ring this one."""

    def check_event(self, fd: int) -> None:
        """Raises BadMessage where this is no eventfd."""


class Backend:
    """One front-end's connection."""

    def __init__(
        self, device: NetDevice, table: MemoryTable, events: Events, mtu: int, mac: bytes
    ) -> None:
        self.device = device
        self.table = table
        self.vrings: dict[int, Vring] = {}
        self._events = events
        self._mtu = mtu
        self._config = NET_CONFIG.pack(mac, LINK_UP, 1, mtu).ljust(CONFIG_MAX, b"\0")
        self._offered: int | None = None  # features; None: nobody has asked yet
        self._is_owned = False
        self._features = 0
        self._protocol = 0
        self._status = 0
        self._log: DirtyLog | None = None
        self._inflight: InflightFile | None = None
        self._handlers: dict[int, Handler] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._nothing,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_LOG_BASE: self._set_log_base,
            Request.SET_LOG_FD: self._nothing,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.NET_SET_MTU: self._set_mtu,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: self._nothing,
            Request.GET_INFLIGHT_FD: self._get_inflight_fd,
            Request.SET_INFLIGHT_FD: self._set_inflight_fd,
            Request.RESET_DEVICE: self._reset_device,
            Request.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
            Request.SET_STATUS: self._set_status,
            Request.GET_STATUS: self._get_status,
        }

    def handle(self, message: Message) -> Reply | None:
        """Do what it says; the reply, if one is due. Raises BadMessage."""
        request = message.header.request
        handler = self._handlers.get(request)
        if handler is None:
            raise BadMessage(f"asked for request {request}, which was not offered")
        wanted = message.header.flags & NEED_REPLY and self._protocol & P_REPLY_ACK
        try:
            answer = handler(message)
        except Refused as refusal:
            if not wanted:
                raise BadMessage(str(refusal)) from None
            return Reply(reply(request, U64.pack(1)))
        if answer is None:
            return Reply(reply(request, U64.pack(0))) if wanted else None
        payload, fd = answer if isinstance(answer, tuple) else (answer, CLOSED)
        return Reply(reply(request, payload), fd)

    @property
    def is_lost(self) -> bool:
        """Has the front-end truncated a file that it had lent?"""
        lent = (self.table.memory, self._log, self._inflight)
        return any(part is not None and part.is_lost for part in lent)

    def close(self) -> None:
        """Stop everything."""
        for vring in self.vrings.values():
            self._stop(vring)
            self._events.kick_changed(vring.index, vring.kick, CLOSED)
            vring.close()
        self.vrings.clear()
        self.table.clear()
        self._use_inflight(None)
        self._use_log(None)

    # Another process

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a back-end in another process needs; `place` notes a descriptor for it.

        Rings that run are stopped, which leaves them as a front-end has them for another back-end,
        and started again: whoever goes on with them, here or there, goes on from the same place.
        """
        running = [vring for vring in self.vrings.values() if vring.ring is not None]
        indices = {vring.index for vring in running}
        for vring in running:
            self._stop(vring)
        log, inflight = self._log, self._inflight
        values = {
            "offered": self._offered,
            "is_owned": self._is_owned,
            "features": self._features,
            "protocol": self._protocol,
            "status": self._status,
            "regions": self.table.carried(place),
            "log": None if log is None else [place(log.fd), *log.place],
            "inflight": None if inflight is None else [place(inflight.fd), *inflight.shape],
            "vrings": [
                {**_carried_ring(vring, place), "runs": vring.index in indices}
                for vring in self.vrings.values()
            ],
        }
        for vring in running:
            self._start(vring)
        return values

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there; the descriptors are taken, and guest memory is not written.

        Raises BadMessage, ValueError, LookupError or TypeError.
        """
        offered = values["offered"]
        self._offered = None if offered is None else int(offered)
        self._is_owned = bool(values["is_owned"])
        self._features = int(values["features"])
        self._protocol, self._status = int(values["protocol"]), int(values["status"])
        self.device.features = Features(self._features & OFFERED)
        for *region, at in values["regions"]:
            self.table.add(MemoryRegion(*map(int, region)), fds[at])
        for at in {region[-1] for region in values["regions"]}:
            os.close(fds[at])  # the table has its own
        if values["log"] is not None:
            at, size, offset = values["log"]
            self._log = DirtyLog(fds[at], int(size), int(offset))
            os.close(fds[at])
        self._switch_log()
        if values["inflight"] is not None:
            at, *shape = values["inflight"]
            self._inflight = InflightFile(fds[at], Shape(*map(int, shape)))
            os.close(fds[at])
        for entry in values["vrings"]:
            vring = self._vring(int(entry["index"]))
            for name in NUMBERS:
                setattr(vring, name, type(getattr(vring, name))(entry[name]))
            for name in EVENTFDS:
                if entry[name] is not None:
                    self._events.check_event(fds[entry[name]])
                    setattr(vring, name, fds[entry[name]])
            vring.place = None if entry["place"] is None else Place(*map(int, entry["place"]))
            self._events.kick_changed(vring.index, CLOSED, vring.kick)
            self.device.enable(vring.index, self._is_enabled(vring))
            if entry["runs"]:
                self._start(vring)

    def abandon(self) -> None:
        """Another process goes on: rings and memory are not touched any more."""
        for vring in self.vrings.values():
            self.device.forget(vring.index)
            vring.ring = None

    def _nothing(self, message: Message) -> None:
        """Means nothing here."""

    # Features

    def _set_owner(self, message: Message) -> None:
        self._is_owned = True

    def _get_features(self, message: Message) -> bytes:
        if self._offered is None:
            self._offered = OFFERED & ~(MQ | GUEST_ANNOUNCE) if self._is_owned else OFFERED
        return U64.pack(self._offered | F_LOG_ALL | F_PROTOCOL_FEATURES)

    def _set_features(self, message: Message) -> None:
        features = message.number()
        offered = OFFERED if self._offered is None else self._offered
        unknown = features & ~(offered | F_LOG_ALL | F_PROTOCOL_FEATURES)
        if unknown:
            raise BadMessage(f"took features that were not offered: {unknown:#x}")
        changed = (features ^ self._features) & OFFERED
        if changed and any(vring.ring is not None for vring in self.vrings.values()):
            raise BadMessage("changed features under rings that run")
        self._features = features
        self.device.features = Features(features & OFFERED)
        for vring in self.vrings.values():
            self.device.enable(vring.index, self._is_enabled(vring))
        self._switch_log()

    def _get_protocol_features(self, message: Message) -> bytes:
        return U64.pack(PROTOCOL_FEATURES)

    def _set_protocol_features(self, message: Message) -> None:
        features = message.number()
        if features & ~PROTOCOL_FEATURES:
            raise BadMessage(f"took protocol features that were not offered: {features:#x}")
        self._protocol = features

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(PAIRS_MAX)

    def _set_mtu(self, message: Message) -> None:
        mtu = message.number()
        if mtu < self._mtu:
            raise Refused(f"has an MTU of {mtu} bytes; this network's is {self._mtu}")

    def _get_config(self, message: Message) -> bytes:
        offset, size, flags = message.fields(CONFIG)
        if offset + size > CONFIG_MAX:
            return CONFIG.pack(offset, 0, flags)  # which says that it cannot be had
        return CONFIG.pack(offset, size, flags) + self._config[offset : offset + size]

    def _set_status(self, message: Message) -> None:
        self._status = message.number() & 0xFF
        if not self._status:
            self._reset()

    def _get_status(self, message: Message) -> bytes:
        return U64.pack(self._status)

    def _reset_device(self, message: Message) -> None:
        self._reset()

    def _reset(self) -> None:
        self._use_inflight(None)  # the driver has everything back
        for vring in self.vrings.values():
            self._stop(vring)
            vring.is_kicked = vring.is_enabled = False
            self.device.enable(vring.index, False)

    # Memory

    def _set_mem_table(self, message: Message) -> None:
        count, _ = message.fields(STATE)
        if count > REGIONS_MAX or count != len(message.fds):
            raise BadMessage(f"sent {count} regions of memory and {len(message.fds)} descriptors")
        regions = [
            MemoryRegion(*message.fields(REGION, STATE.size + at * REGION.size))
            for at in range(count)
        ]
        self.table.replace(regions, message.fds)
        self._bind_all()

    def _get_max_mem_slots(self, message: Message) -> bytes:
        return U64.pack(SLOTS_MAX)

    def _add_mem_reg(self, message: Message) -> None:
        region = MemoryRegion(*message.fields(REGION, U64.size))
        if not message.fds:
            raise BadMessage("added memory without its descriptor")
        self.table.add(region, message.fds[0])
        self._bind_all()

    def _rem_mem_reg(self, message: Message) -> None:
        region = MemoryRegion(*message.fields(REGION, U64.size))
        if not self.table.remove(region):
            raise Refused(f"removed memory at {region.start:#x} that was not there")
        self._bind_all()

    # The dirty log

    def _set_log_base(self, message: Message) -> bytes:
        size, offset = message.fields(LOG)
        if not message.fds:
            raise BadMessage("sent a log without its descriptor")
        self._use_log(DirtyLog(message.fds[0], size, offset))
        self._switch_log()
        return U64.pack(0)  # QEMU waits for it, whether it wants replies or not

    def _use_log(self, log: DirtyLog | None) -> None:
        if self._log is not None:
            self._log.close()
        self._log = log

    def _switch_log(self) -> None:
        log = self._log if self._features & F_LOG_ALL else None
        self.device.use_log(None if log is None else log.mark_ranges)
        for vring in self.vrings.values():
            if vring.ring is not None:
                vring.ring.wrote = self._logger_of(vring)

    def _logger_of(self, vring: Vring) -> Wrote | None:
        """What is told of writes into this ring."""
        log, place = self._log, vring.place
        if log is None or place is None or not place.is_logged:
            return None
        if not self._features & F_LOG_ALL:
            return None
        try:
            starts = {DEVICE: place.log, DESCRIPTORS: self.table.guest_addr(place.descriptors)}
        except DmaFault:  # then it rests
            return None
        return lambda area, offset, length: log.mark(starts[area] + offset, length)

    # Buffers in flight

    def _get_inflight_fd(self, message: Message) -> tuple[bytes, int]:
        asked = self._shape_of(message)
        try:
            fd, shape = make_file(asked, self.device.features.packed)
        except OSError as error:
            raise Refused(f"gets no record of buffers in flight: {error.strerror}") from None
        return shape.pack().ljust(len(message.payload), b"\0"), fd  # QEMU's has padding behind it

    def _set_inflight_fd(self, message: Message) -> None:
        shape = self._shape_of(message)
        if any(vring.ring is not None for vring in self.vrings.values()):
            raise BadMessage("changed the record of buffers in flight under rings that run")
        if not message.fds:
            raise BadMessage("sent a record of buffers in flight without its descriptor")
        self._use_inflight(InflightFile(message.fds[0], shape))

    def _use_inflight(self, inflight: InflightFile | None) -> None:
        if self._inflight is not None:
            self._inflight.close()
        self._inflight = inflight

    def _shape_of(self, message: Message) -> Shape:
        if not self._protocol & P_INFLIGHT_SHMFD:
            raise BadMessage("has buffers in flight, which was not agreed upon")
        shape = Shape(*message.fields(INFLIGHT))
        shape.check(2 * PAIRS_MAX)
        return shape

    # Rings

    def _vring(self, index: int) -> Vring:
        if index >= 2 * PAIRS_MAX:
            raise BadMessage(f"named ring {index} of {2 * PAIRS_MAX}")
        vring = self.vrings.get(index)
        if vring is None:
            vring = self.vrings[index] = Vring(index)
            self.device.enable(index, self._is_enabled(vring))
        return vring

    def _is_enabled(self, vring: Vring) -> bool:
        """Where there are no protocol features, rings are enabled without a word."""
        return vring.is_enabled or not self._features & F_PROTOCOL_FEATURES

    def _set_vring_num(self, message: Message) -> None:
        index, size = message.fields(STATE)
        if not 0 < size <= SIZE_MAX:
            raise BadMessage(f"has a ring of {size} descriptors")
        self._resting(index).size = size

    def _set_vring_base(self, message: Message) -> None:
        index, base = message.fields(STATE)
        self._resting(index).base = base

    def _resting(self, index: int) -> Vring:
        vring = self._vring(index)
        if vring.ring is not None:
            raise BadMessage(f"changed ring {index} while it runs")
        return vring

    def _set_vring_addr(self, message: Message) -> None:
        index, *place = message.fields(ADDRESS)
        vring = self._vring(index)
        vring.place = Place(*place)
        if vring.ring is None:
            self._start(vring)
        else:  # QEMU sends it again to switch logging
            self._bind(vring, vring.ring)

    def _get_vring_base(self, message: Message) -> bytes:
        index, _ = message.fields(STATE)
        vring = self._vring(index)
        self._stop(vring)
        vring.is_kicked = False
        self._events.kick_changed(index, vring.kick, CLOSED)
        vring.kick = _exchange(vring.kick, CLOSED)
        return STATE.pack(index, vring.base)

    def _set_vring_kick(self, message: Message) -> None:
        vring, fd = self._vring_and_fd(message)
        self._events.kick_changed(vring.index, vring.kick, fd)
        vring.kick = _exchange(vring.kick, fd)
        vring.is_kicked = True
        if vring.ring is None:
            self._start(vring)

    def _set_vring_call(self, message: Message) -> None:
        vring, fd = self._vring_and_fd(message)
        vring.call = _exchange(vring.call, fd)
        if vring.ring is not None and fd != CLOSED:
            self._events.call(fd)  # what was said to the old one may not have been heard

    def _set_vring_err(self, message: Message) -> None:
        vring, fd = self._vring_and_fd(message)
        vring.error = _exchange(vring.error, fd)

    def _vring_and_fd(self, message: Message) -> tuple[Vring, int]:
        number = message.number()
        vring = self._vring(number & INDEX_MASK)
        if number & NO_FD:
            return vring, CLOSED
        if message.fds:
            self._events.check_event(message.fds[0])
        return vring, message.take_fd()

    def _set_vring_enable(self, message: Message) -> None:
        index, on = message.fields(STATE)
        vring = self._vring(index)
        vring.is_enabled = bool(on)
        self.device.enable(index, self._is_enabled(vring))

    # Their running

    def _start(self, vring: Vring) -> None:
        """If all is there that it needs."""
        if not vring.is_ready:
            return
        try:
            ring = self._make(vring)
        except BrokenRing as broken:
            raise BadMessage(str(broken)) from None
        self._bind(vring, ring)
        vring.ring = ring
        self.device.start(vring.index, ring)
        if self._inflight is not None and vring.call != CLOSED:
            self._events.call(vring.call)  # who showed the last buffers may not have come to it

    def _make(self, vring: Vring) -> Ring:
        features = self.device.features
        parts = vring.size, features, self.table.memory, way_of(vring.index)
        region = None
        if self._inflight is not None:
            region = self._inflight.region(vring.index, vring.size, features.packed)
        if region is None:
            return (PackedRing if features.packed else SplitRing)(*parts, vring.base)
        if features.packed:
            return TrackedPackedRing(*parts, vring.base, region)
        return TrackedSplitRing(*parts, region)

    def _stop(self, vring: Vring) -> None:
        if vring.ring is None:
            return
        if self.device.stop(vring.index) and vring.call != CLOSED:
            self._events.call(vring.call)
        vring.base = vring.ring.base()
        vring.ring = None

    def _bind_all(self) -> None:
        """The memory is another one."""
        for vring in self.vrings.values():
            if vring.ring is not None:
                self._bind(vring, vring.ring)

    def _bind(self, vring: Vring, ring: Ring) -> None:
        """Where a ring lies now; nowhere, where its memory is not there."""
        place = vring.place
        assert place is not None
        descriptors, driver, device = ring.lengths
        view = self.table.user_view
        try:
            areas = Areas(
                view(place.descriptors, descriptors),
                view(place.available, driver),
                view(place.used, device),
            )
        except DmaFault:
            ring.bind(None)
        else:
            ring.bind(areas)
            ring.wrote = self._logger_of(vring)


def _carried_ring(vring: Vring, place: Callable[[int], int]) -> dict[str, Any]:
    fds = {name: getattr(vring, name) for name in EVENTFDS}
    return {
        **{name: getattr(vring, name) for name in NUMBERS},
        **{name: None if fd == CLOSED else place(fd) for name, fd in fds.items()},
        "place": vring.place,
    }


def _exchange(old: int, new: int) -> int:
    """Close the old descriptor; the new one."""
    if old != CLOSED:
        os.close(old)
    return new
