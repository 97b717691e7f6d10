"""Front-ends of vhost-user that are not QEMU's: what each sends, in its order.

    monitor = CloudHypervisor(FrontEnd(sock, turn=…))
    monitor.begin()                        # as the program starts
    monitor.activate(guest_features)       # as the guest's driver says DRIVER_OK
    monitor.reset()                        # as it resets the device
    monitor.reconnect(sock)                # Cloud Hypervisor, to a back-end that was started anew
    monitor.front.transmit.send(frame)

The orders, flags and feature sets are those of the programs' sources: Cloud Hypervisor's
virtio-devices/src/vhost_user (net.rs, vu_common_ctrl.rs, 2022 to 2026) and crosvm's
devices/src/virtio/vhost_user_frontend and third_party/vmm_vhost (2025). `offered` is what the guest
sees; `is_acceptable` is what Linux asks of it (virtnet_validate_features).

Does not do: anything of these programs beside their network device.
"""

from __future__ import annotations

import socket
import struct

from nic.vhost_user.messages import CONFIG, NEED_REPLY, Request
from nic.virtio.features import (
    CSUM,
    EVENT_IDX,
    GUEST_ANNOUNCE,
    GUEST_CSUM,
    GUEST_TSO4,
    GUEST_TSO6,
    HOST_ECN,
    HOST_TSO4,
    HOST_TSO6,
    INDIRECT_DESC,
    MAC,
    MQ,
    MRG_RXBUF,
    MTU,
    VERSION_1,
)
from tests.kit.frontend import F_PROTOCOL, FrontEnd, SplitDriver

P_MQ, P_LOG_SHMFD, P_REPLY_ACK, P_BACKEND_REQ = 1 << 0, 1 << 1, 1 << 3, 1 << 5
P_CONFIG, P_INFLIGHT, P_SLOTS, P_STATE = 1 << 9, 1 << 12, 1 << 15, 1 << 19
GUEST_ECN, GUEST_UFO, HOST_UFO, CTRL_VQ = 1 << 9, 1 << 10, 1 << 14, 1 << 17
DEVICE_TYPE_FEATURES = (1 << 24) - 1 | ((1 << 14) - 1) << 50  # bits that each kind of device has


def is_acceptable(features: int) -> bool:
    """Does Linux's driver take a network device with these?"""
    return bool(features & CTRL_VQ) or not features & (MQ | GUEST_ANNOUNCE)


class Monitor:
    """What both have."""

    features = 0  # that it may hand on to the guest
    protocol = 0

    def __init__(self, front: FrontEnd) -> None:
        self.front = front
        self.flags = 1
        self.offered = 0
        self.agreed = 0  # of the protocol's features

    def begin(self) -> None:
        front = self.front
        self.request(Request.SET_OWNER)
        self.offered = self.features & front.ask_number(Request.GET_FEATURES)
        assert self.offered & F_PROTOCOL
        self.agreed = self.protocol & front.ask_number(Request.GET_PROTOCOL_FEATURES)
        self.request(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", self.agreed))

    def request(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """One that has no answer of its own."""
        self.front.send(request, payload, fds, self.flags)
        if self.flags & NEED_REPLY:
            answered, data = self.front.reply()
            assert (answered, data) == (request, bytes(8))

    def ring(self, request: int, index: int, value: int) -> None:
        self.request(request, struct.pack("=II", index, value))

    def reset(self) -> None:
        for index in range(2):
            self.ring(Request.SET_VRING_ENABLE, index, 0)
            self.front.stop_ring(index)

    def _share(self, features: int) -> None:
        front = self.front
        front.features = features
        self.request(Request.SET_FEATURES, struct.pack("=Q", features))
        region = struct.pack("=II", 1, 0) + front.region(0, len(front.memory))
        self.request(Request.SET_MEM_TABLE, region, (front.fd,))
        front.memory[:] = bytes(len(front.memory))  # a guest that begins anew
        front.rings = [front.driver(index) for index in range(2)]


class CloudHypervisor(Monitor):
    """`--net vhost_user=true,socket=PATH`: every request wants a reply."""

    features = (
        CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | HOST_TSO4 | HOST_TSO6
        | HOST_ECN | HOST_UFO | MRG_RXBUF | CTRL_VQ | EVENT_IDX | VERSION_1 | MTU | MQ | F_PROTOCOL
    )  # fmt: skip
    protocol = P_MQ | P_SLOTS | P_REPLY_ACK | P_INFLIGHT | P_LOG_SHMFD

    def begin(self) -> None:
        super().begin()
        assert self.agreed & P_REPLY_ACK
        self.flags = 1 | NEED_REPLY
        self.front.send(Request.GET_QUEUE_NUM, b"", (), self.flags)
        answered, data = self.front.reply()
        assert answered == Request.GET_QUEUE_NUM
        assert struct.unpack("=Q", data)[0] >= 2
        self.offered |= MAC  # its own affair

    def activate(self, features: int) -> None:
        self._share(features & ~MAC | F_PROTOCOL)
        self._set_up()

    def reconnect(self, sock: socket.socket) -> None:
        """With the rings as they are; where to begin is what the guest has made available."""
        self.front.sock = sock
        self.flags = 1
        self.request(Request.SET_OWNER)
        self.front.ask_number(Request.GET_FEATURES)
        self.request(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", self.agreed))
        self.flags = 1 | NEED_REPLY
        self.request(Request.SET_FEATURES, struct.pack("=Q", self.front.features))
        region = struct.pack("=II", 1, 0) + self.front.region(0, len(self.front.memory))
        self.request(Request.SET_MEM_TABLE, region, (self.front.fd,))
        self._set_up()

    def _set_up(self) -> None:
        front = self.front
        for index in range(2):
            self.ring(Request.SET_VRING_NUM, index, front.size)
        for index in range(2):
            ring = front.rings[index]
            assert isinstance(ring, SplitDriver)
            self.request(Request.SET_VRING_ADDR, front.place(index))
            self.ring(Request.SET_VRING_BASE, index, ring.avail[1])
            number = struct.pack("=Q", index)
            self.request(Request.SET_VRING_CALL, number, (front.calls[index],))
            self.request(Request.SET_VRING_KICK, number, (front.kicks[index],))
        for index in range(2):
            self.ring(Request.SET_VRING_ENABLE, index, 1)


class Crosvm(Monitor):
    """`--vhost-user net,socket=PATH`: no request wants a reply; the configuration is asked for."""

    features = DEVICE_TYPE_FEATURES | VERSION_1 | EVENT_IDX | INDIRECT_DESC | F_PROTOCOL
    protocol = P_CONFIG | P_MQ | P_BACKEND_REQ | P_STATE | P_REPLY_ACK

    def begin(self) -> None:
        super().begin()
        self.pairs = self.front.ask_number(Request.GET_QUEUE_NUM)

    def read_config(self, offset: int, size: int) -> bytes:
        payload = CONFIG.pack(offset, size, 1) + bytes(size)
        answer = self.front.ask(Request.GET_CONFIG, payload)
        assert CONFIG.unpack_from(answer)[:2] == (offset, size)
        return answer[CONFIG.size :]

    def activate(self, features: int) -> None:
        front = self.front
        for part in (features & 0xFFFFFFFF, features):  # as a driver writes its halves
            self.request(Request.SET_FEATURES, struct.pack("=Q", part | F_PROTOCOL))
        self._share(features | F_PROTOCOL)
        for index in range(2):
            self.ring(Request.SET_VRING_NUM, index, front.size)
            self.request(Request.SET_VRING_ADDR, front.place(index))
            self.ring(Request.SET_VRING_BASE, index, 0)
            number = struct.pack("=Q", index)
            self.request(Request.SET_VRING_CALL, number, (front.calls[index],))
            self.request(Request.SET_VRING_KICK, number, (front.kicks[index],))
            self.ring(Request.SET_VRING_ENABLE, index, 1)
