"""The disk of `slirp demo --disk`: a raw image of the user's, or one that is made and goes again.

An image that is given is written from its first block on; nothing of it is kept aside. One that is
not there yet is made as large as the file needs. One for the occasion is a temporary file that the
file system forgets with the last descriptor, however the program ends.

`--endpoint` says who moves its blocks (slirp.host.endpoints).

Does not do: formats, partitions, growing an image that is there.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slirp.cli.failure import Failure
from slirp.host import endpoints

if TYPE_CHECKING:
    from slirp.host.endpoints import Image

FOR_THE_OCCASION: Final = ""  # what --disk means without IMAGE
BLOCK_LEN: Final = 512
PIECE_LEN: Final = 1 << 20  # bytes handled at once


@contextmanager
def opened(path: str, octets: int, endpoint: str = endpoints.EPOLL) -> Iterator[Image]:
    """An image with room for `octets`, if it is a new one. Raises Failure."""
    make = endpoints.images(endpoint)
    size = max(-(-octets // BLOCK_LEN), 1) * BLOCK_LEN
    try:
        if path == FOR_THE_OCCASION:
            with tempfile.NamedTemporaryFile(prefix="slirp-disk-") as file:
                os.truncate(file.fileno(), size)
                image = make(file.name)
        else:
            if not os.path.exists(path):
                with open(path, "xb") as file:
                    file.truncate(size)
            image = make(path)
    except OSError as error:
        raise Failure(f"--disk {path}: {error.strerror}; give it a file to write to") from None
    with image:
        yield image


def sha256_of(image: Image, octets: int) -> str:
    """Of the image's first bytes, as the host reads them."""
    digest = hashlib.sha256()
    for start in range(0, octets, PIECE_LEN):
        digest.update(os.pread(image.fd, min(PIECE_LEN, octets - start), start))
    return digest.hexdigest()
