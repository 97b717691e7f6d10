"""Where `slirp demo` gets its file from: one of its own making, or any URL of the host's.

`generated` serves random bytes from a directory of their own by the standard library's HTTP
server, in a process of its own so that it computes beside the demo and not in turn with it.
`existing` asks the host for what the guest will ask for, to know its digest.

Does not do: TLS, redirects; nor does the guest.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from slirp.cli.failure import USAGE, Failure
from slirp.linux.syscalls import die_with_parent

PIECE_LEN: Final = 1 << 20  # bytes handled at once
TIMEOUT: Final = 30.0  # seconds without an answer
FILE_NAME: Final = "demo.bin"
HOST_NAME: Final = "host.slirp.internal"  # the gateway, which leads to the host's loopback


class Origin(NamedTuple):
    """A file that the guest is to fetch."""

    url: str  # as the guest is told
    octets: int
    sha256: str  # what the host has


@contextmanager
def generated(size: int) -> Iterator[Origin]:
    """A file of random bytes on 127.0.0.1 while the context lasts."""
    with tempfile.TemporaryDirectory(prefix="slirp-demo-") as directory:
        sha256 = _generate(Path(directory, FILE_NAME), size)
        server = _serve(directory)
        try:
            yield Origin(f"http://{HOST_NAME}:{_port_of(server)}/{FILE_NAME}", size, sha256)
        finally:
            server.kill()
            server.communicate()


def _generate(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, PIECE_LEN):
            piece = os.urandom(min(PIECE_LEN, size - start))
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _serve(directory: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    parent = os.getpid()
    return subprocess.Popen(
        [*command, "--directory", directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
        preexec_fn=lambda: die_with_parent(parent),  # and nobody can handle SIGKILL
    )


def _port_of(server: subprocess.Popen[str]) -> int:
    """From its first line: "Serving HTTP on 127.0.0.1 port 40123 (http://…"."""
    assert server.stdout is not None
    words = server.stdout.readline().split()
    if "port" not in words[:-1]:
        raise Failure("the HTTP server for the generated file does not start")
    return int(words[words.index("port") + 1])


@contextmanager
def existing(url: str, ipv6: bool = False) -> Iterator[Origin]:
    """A URL of the host's, fetched once by the host for its digest. Raises Failure."""
    parts = checked(url, ipv6)
    try:
        octets, sha256 = _fetch(parts)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or error
        raise Failure(f"{url}: the host itself cannot fetch it: {why}") from None
    yield Origin(url, octets, sha256)


def checked(url: str, ipv6: bool) -> SplitResult:
    """The URL in parts; Failure for what the guest's client does not know, of one family only."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise Failure(f"--url {url}: {error}", USAGE) from None
    if parts.scheme == "https":
        raise Failure("--url: https is not supported, the guest has no TLS; use http://", USAGE)
    if parts.scheme != "http" or not host:
        raise Failure(f"--url {url}: write http://HOST[:PORT]/PATH", USAGE)
    if ":" in host and not ipv6:
        raise Failure(f"--url {url}: the guest has no IPv6 without --ipv6", USAGE)
    if ipv6 and host.replace(".", "").isdecimal() and not host.startswith("127."):
        raise Failure(f"--url {url}: with --ipv6 the guest has no IPv4", USAGE)
    if host.startswith("127.") and host != "127.0.0.1":
        raise Failure(f"--url {url}: of the host's loopback the guest reaches 127.0.0.1", USAGE)
    if parts.username is not None:
        raise Failure("--url: the guest has no passwords; leave out what is before the @", USAGE)
    return parts


def _fetch(parts: SplitResult) -> tuple[int, str]:
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept-Encoding": "identity"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            what = f"HTTP status {response.status}"
            raise Failure(f"{parts.geturl()}: {what}; the guest wants 200 and follows nothing")
        digest = hashlib.sha256()
        octets = 0
        while piece := response.read(PIECE_LEN):
            digest.update(piece)
            octets += len(piece)
        return octets, digest.hexdigest()
    finally:
        connection.close()
