"""Opening a TAP device, before there is a port for it.

Apart from nic.tap because it is needed first and at once: whoever waits for the device to be there
(a DHCP client that is started beside this program) does not wait for the network behind it to be
imported.

Does not do: frames (nic.tap), addresses (slirp.linux.netns).
"""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Final

TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
TUNGETIFF: Final = 0x800454D2
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

_IFREQ: Final = struct.Struct("16sH22x")  # struct ifreq: name, flags


def open_tap(name: str = "", *, vnet: bool = True) -> tuple[int, str]:
    """Create or open the TAP device `name` in this network namespace: its descriptor and name.

    Raises OSError (EPERM without CAP_NET_ADMIN over the namespace, ENOENT without /dev/net/tun).
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if vnet else 0)
        request = _IFREQ.pack(name.encode(), flags)
        answer = fcntl.ioctl(fd, TUNSETIFF, request)
    except BaseException:
        os.close(fd)
        raise
    return fd, _IFREQ.unpack(answer)[0].rstrip(b"\0").decode()


def has_vnet(fd: int) -> bool:
    """Was this TAP device opened with IFF_VNET_HDR? Raises OSError where it is none."""
    return bool(_IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))[1] & IFF_VNET_HDR)
