"""Who moves bytes between the host and guest memory, by the name that a Config gives.

`epoll`: the loop itself, when epoll says that it can. `threads`: a pool of threads. `uring`: the
kernel, by io_uring; what that takes is looked for here, and only when it is asked for.

Does not do: more than to make one of each kind; sockets are slirp.host.socket_endpoint's, images
dma.scsi.endpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from slirp.errors import ConfigError

if TYPE_CHECKING:
    from dma.scsi.endpoint import ImageFile
    from slirp.host.image_threads import ThreadedImage
    from slirp.host.image_uring import UringImage
    from slirp.host.socket_endpoint import SocketEndpoint

    Image: TypeAlias = ImageFile | ThreadedImage | UringImage

EPOLL: Final = "epoll"
THREADS: Final = "threads"
URING: Final = "uring"


def check(name: str) -> None:
    """Raises ConfigError where the host has not what this one takes."""
    if name == URING:
        from slirp.host import uring

        reason = uring.why_not()
        if reason is not None:
            raise ConfigError(f"endpoint {name}: {reason}", "endpoint")


def sockets(name: str) -> SocketEndpoint:
    """Who receives from hosts' sockets."""
    check(name)
    if name == URING:
        from slirp.host.socket_uring import UringSockets

        return UringSockets()
    if name == THREADS:
        from slirp.host.socket_threads import ThreadedSockets

        return ThreadedSockets()
    from slirp.host.socket_endpoint import AT_ONCE

    return AT_ONCE


def images(name: str) -> Callable[[str], Image]:
    """What opens a disk's image."""
    check(name)
    if name == URING:
        from slirp.host.image_uring import UringImage

        return UringImage
    if name == THREADS:
        from slirp.host.image_threads import ThreadedImage

        return ThreadedImage
    from dma.scsi.endpoint import ImageFile

    return ImageFile
