"""`slirp qemu`: a QEMU machine with this network, which ends with it.

The two are joined in the fastest way that QEMU and its command line allow, and a line says which
(slirp/cli/qemu_ways.py); --netdev names another. A network device is added too, unless the command
line has one for `netdev=slirp0` or --device is `none`.

QEMU is started with one end of a socketpair, so there is no path to choose, to protect or to
remove. For vhost-user there is one, since QEMU passes descriptors over sockets that it has opened
by name only: in a folder of our own, gone as soon as QEMU is there. vhost-user needs the machine's
memory in a file as well: a memory backend of the size that -m says is added, unless the command
line has one of its own.

The terminal is QEMU's: its monitor and serial console work as without `slirp qemu`. Signals that
somebody sends to this process are passed on; those of the terminal reach QEMU by themselves. The
exit status is QEMU's, 128 plus the signal that ended it, 126 or 127 where it cannot be started.

Does not do: several machines (`slirp listen`), machines that go to the background.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from slirp.cli import log, options
from slirp.cli.control import open_control, tell_ready
from slirp.cli.endpoint import open_shared
from slirp.cli.failure import USAGE, Failure
from slirp.cli.listen import report, step_back, will
from slirp.cli.qemu_ways import (
    AUTO,
    DEVICE,
    DGRAM,
    NETDEV,
    VHOST_USER,
    VIRTIO,
    WAYS,
    NoWay,
    ask,
    choose,
    has_memory,
    lacks_msix,
    own_device,
)
from slirp.linux.signals import SI_KERNEL, SignalFd

if TYPE_CHECKING:
    from slirp.control.verbs import Will
    from slirp.machines import Machine, Server
    from slirp.network import Network

DESCRIPTION: Final = """\
Start a QEMU machine with this network. It gets its address by DHCP; the gateway's address
(10.0.2.2) is the host itself, unless --no-host-loopback is given. A line says how QEMU is
connected: by vhost-user if QEMU, the device and the memory allow it, else by -netdev stream, or by
socket before QEMU 7.2.
"""
EPILOG: Final = """\
examples:
  slirp qemu --forward 2222:22 -- qemu-system-x86_64 -m 1G -cdrom debian.iso
  slirp qemu --netdev stream -- qemu-system-x86_64 -m 1G -cdrom debian.iso
  slirp qemu --http ./boot --bootfile boot.ipxe -- qemu-system-x86_64 -m 1G -boot n
"""
MEMORY: Final = "slirp-memory"
MEMORY_USUAL: Final = "128M"  # QEMU's own default
MTU_USUAL: Final = 1500
FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
NOT_FOUND: Final = 127  # as the shells have it
NOT_EXECUTABLE: Final = 126


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.usage = "slirp qemu [OPTION…] -- qemu-system-… [ARG…]"
    options.add_options(parser)
    parser.add_argument(
        "--device",
        default=DEVICE,
        metavar="MODEL",
        help="the machine's network device (%(default)s), with its properties; none: add none",
    )
    parser.add_argument(
        "--netdev", choices=(AUTO, *WAYS), default=AUTO,
        help="how QEMU is connected (%(default)s: the fastest way it supports)",
    )  # fmt: skip
    parser.add_argument(
        "--vhost-user", action="store_true",
        help="the same as --netdev vhost-user: share the memory; for virtio-net devices",
    )  # fmt: skip
    parser.add_argument("command", nargs=REMAINDER, metavar="qemu-system-… [ARG…]")


def run(args: Namespace) -> int:
    argv = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not argv:
        raise Failure("no machine to start; try: slirp qemu -- qemu-system-x86_64 -m 1G", USAGE)
    if "-daemonize" in argv or "--daemonize" in argv:
        raise Failure("-daemonize: the network would end at once; use `slirp listen`", USAGE)
    log.use_json(on=args.log_json)
    if args.vhost_user:
        args.netdev = VHOST_USER
    if args.netdev == VHOST_USER and not args.device.startswith((VIRTIO, "none")):
        raise Failure(f"--vhost-user works with {VIRTIO} devices, not with {args.device}", USAGE)
    with ExitStack() as stack:
        wrap, wrap_path = options.captures_of(args, stack)
        network = options.open_network(args, stack)
        args.mtu = network.mtu  # which may be the file's
        from slirp.machines import Server  # after the options were found to be good

        server = Server(network, report=lambda line: None, wrap=wrap, wrap_path=wrap_path)
        stack.callback(server.close)
        qemu = ask(argv[0])
        try:
            choice = choose(args.netdev, args.device, argv, qemu)
        except NoWay as error:
            raise Failure(str(error)) from None
        signals = SignalFd(FORWARDED)
        stack.callback(signals.close)
        machines: list[Machine] = []
        theirs: socket.socket | None = None
        if choice.way == VHOST_USER:
            place = await_machine(network, server, machines, stack)
        else:
            kind = socket.SOCK_DGRAM if choice.way == DGRAM else socket.SOCK_STREAM
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            place = str(theirs.fileno())
            if choice.way == DGRAM:
                server.add_datagram(ours, argv[0])
            else:
                machines.append(server.add_stream(ours, argv[0]))
        report(f"{qemu.name} is joined by -netdev {choice.way}: {choice.why}")
        added = arguments(argv, choice.way, place, args, qemu.version)
        process = _start(argv + added, theirs, signals)
        if isinstance(process, int):
            return process
        pidfd = os.pidfd_open(process.pid)
        stack.callback(os.close, pidfd)
        open_control(
            args,
            network,
            stack,
            on_stop=process.terminate,
            heritage=lambda: _will(network, server, args, pidfd),
            on_successor=lambda: step_back(network, server),
        )
        tell_ready(args.ready_fd)
        tell_stats = options.stats_printer(args, network)
        status = _serve(network, process, signals, pidfd)
        for machine in machines:
            if machine.port.broken:
                report(f"the machine {machine.port.gone}; it had no network from then on")
        tell_stats()
        return status


def await_machine(
    network: Network, server: Server, machines: list[Machine], stack: ExitStack
) -> str:
    """The path of a socket for one machine, which is gone when the machine is there."""
    folder = stack.enter_context(TemporaryDirectory(prefix="slirp-"))
    endpoint = open_shared(f"{folder}/net", "vhost-user")
    listener = stack.enter_context(endpoint.sock)

    def handle_connect() -> None:
        sock, _ = listener.accept()
        network.unwatch(listener.fileno())
        endpoint.remove()
        machines.append(server.add_vhost_user(sock, endpoint.name))

    network.watch(listener.fileno(), handle_connect)
    return endpoint.path


def arguments(
    argv: Sequence[str],
    way: str,
    place: str,
    args: Namespace,
    version: tuple[int, int] | None = None,
) -> list[str]:
    """What QEMU is told in addition; `place` is a descriptor, or a path for vhost-user."""
    match way:
        case "vhost-user":
            added = ["-chardev", f"socket,id={NETDEV},path={place}"]
            added += ["-netdev", f"vhost-user,id={NETDEV},chardev={NETDEV}", *_memory(argv)]
        case "stream":
            added = ["-netdev", f"stream,id={NETDEV},addr.type=fd,addr.str={place}"]
        case "dgram":
            added = ["-netdev", f"dgram,id={NETDEV},local.type=fd,local.str={place}"]
        case _:
            added = ["-netdev", f"socket,id={NETDEV},fd={place}"]
    if args.device == "none" or own_device(argv):
        return added
    return [*added, "-device", _device(argv, way, args, version)]


def _device(argv: Sequence[str], way: str, args: Namespace, version: tuple[int, int] | None) -> str:
    device = f"{args.device},netdev={NETDEV}"
    if args.mtu != MTU_USUAL and args.device.startswith(VIRTIO) and "host_mtu" not in device:
        device += f",host_mtu={args.mtu}"
    if way == VHOST_USER and args.device.startswith(DEVICE) and lacks_msix(argv, version):
        device += "" if "vectors" in device else ",vectors=0"
    return device


def _memory(argv: Sequence[str]) -> list[str]:
    """A memory backend that can be shared, unless there is one."""
    if has_memory(argv):
        return []
    backend = f"memory-backend-memfd,id={MEMORY},size={_memory_size(argv)},share=on"
    return ["-object", backend, "-machine", f"memory-backend={MEMORY}"]


def _memory_size(argv: Sequence[str]) -> str:
    """What -m says: `512`, `1G`, `size=1G,slots=2`."""
    size = MEMORY_USUAL
    for option, value in pairwise(argv):
        if option in ("-m", "--m"):
            named = dict(re.findall(r"(\w+)=([^,]*)", value))
            size = named.get("size") or value.split(",")[0]
    return size + "M" if size.isdecimal() else size


def _start(
    argv: Sequence[str], theirs: socket.socket | None, signals: SignalFd
) -> subprocess.Popen[bytes] | int:
    """The running machine, or the exit status where it cannot be started. Closes its socket."""
    from slirp.linux.syscalls import die_with_parent

    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(parent, signal.SIGTERM)  # QEMU closes its disks then
        signals.restore_mask()

    fds = [] if theirs is None else [theirs.fileno()]
    try:
        return subprocess.Popen(argv, pass_fds=fds, preexec_fn=prepare)
    except OSError as error:
        report(f"{argv[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    finally:
        if theirs is not None:
            theirs.close()


def _will(network: Network, server: Server, args: Namespace, pidfd: int) -> Will:
    """The machine stays this process's child; who goes on knows it by its pidfd."""
    if not server.serves:
        from slirp.control.protocol import Refusal

        raise Refusal("unsupported", "handover: QEMU has not connected yet, or has no network")
    return will(network, server, args, exit_fd=pidfd, child=pidfd)


def _serve(
    network: Network, process: subprocess.Popen[bytes], signals: SignalFd, pidfd: int
) -> int:
    def pass_on() -> None:
        for number, code, sender in signals.read():
            if code != SI_KERNEL and sender != process.pid:
                process.send_signal(number)

    try:
        network.watch(signals.fileno(), pass_on)
        network.watch(pidfd, network.stop)
        network.run()
        while network.abandoned and process.poll() is None:  # another process goes on with it
            if signals.fileno() in select.select([pidfd, signals.fileno()], [], [])[0]:
                pass_on()
    finally:
        network.unwatch(pidfd)
        network.unwatch(signals.fileno())
        if process.poll() is None:  # this side failed: the machine is not left behind
            process.terminate()
    code = process.wait()
    return code if code >= 0 else 128 - code
