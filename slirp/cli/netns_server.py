"""A network for a namespace that exists: the program behind `slirp attach` and `slirp4netns-py`.

`serve` takes the TAP device that a process was sent for (slirp.cli.early; this module is imported
after that), puts it on a network, opens the control socket, gives up its rights where that was
asked for, says that it is ready, and runs until the exit descriptor says so, a signal comes, or the
device or the namespace is gone.

A process that holds a TAP device keeps its namespace alive, so the end of the namespace's processes
has to be looked for: with `follow`, `serve` waits for the process that was named and then for any
other that it can see in there. slirp4netns does not do that (its callers use the exit descriptor).

Does not do: look after a namespace's addresses once they are set.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from nic import tun
from nic.port import DeviceGone
from nic.tap import TapPort
from slirp.cli import log, tap
from slirp.cli.control import open_control, tell_ready
from slirp.cli.early import Options
from slirp.cli.failure import FAILED, USAGE, Failure
from slirp.cli.options import (
    NO_DNS,
    OPTIONS,
    capture_of,
    forward_auto,
    forward_fields,
    leading_to,
    make_network,
    named,
    not_given,
    outbound,
    outbound6,
    service_fields,
    stats_printer,
)
from slirp.cli.will import HANDED_ON, will_of
from slirp.config import Config
from slirp.linux import netns
from slirp.linux.listening import Namespace
from slirp.linux.signals import SignalFd
from slirp.network import Network

if TYPE_CHECKING:
    import socket

    from nic.bess import BessPort
    from slirp.control.slirp4netns import ApiSocket

ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESOLV_CONF: Final = "/etc/resolv.conf"

Say = Callable[[str], None]


def serve(
    options: Options,
    errand: netns.Errand | None,
    describe: Callable[[Options, tap.Places], None],
    complain: Say,
) -> int:
    """Set up and run; the exit status. `errand`: what `early.send_for_tap` gave."""
    with ExitStack() as stack:
        if errand is not None:
            stack.callback(errand.close)
        log.use_json(on=options.log_json)
        config = make_config(options)
        where = tap.places(config)
        signals = SignalFd(ENDING)
        stack.callback(signals.close)
        network = stack.enter_context(make_network(leading_to(config, where.guest)))
        port = open_port(options, errand, stack)
        network.attach(capture_of(options, stack)(port), options.tap_name)
        api: ApiSocket | None = None
        if options.api_socket is not None:
            api = open_api_socket(options.api_socket, network, where.guest, stack)
        ending = Ending(network, complain)
        stack.callback(ending.close)
        ending.on_signal(signals)
        if options.exit_fd is not None:
            ending.on_exit_fd(options.exit_fd)
        if options.follow and options.target_type == "netns" and options.netns_type == "pid":
            ending.follow(int(options.target))
        listening: Namespace | None = None
        inode: int | None = None
        if config.auto_forward is not None:
            listening = namespace_of(options, config.auto_forward)
            inode = listening.inode
        open_control(
            options,
            network,
            stack,
            on_stop=ending.stop,
            heritage=lambda: will_of(
                network,
                port,
                {name: getattr(options, name) for name in HANDED_ON},
                follow=namespace_pid(options) if options.follow else None,
                exit_fd=options.exit_fd,
                inode=inode,
                api=api,
            ),
            on_successor=ending.succeeded,
            default_guest=where.guest,
            namespace_pid=lambda: namespace_pid(options),
        )
        if listening is not None:
            forward_auto(config, network, where.guest, listening.pid, stack)
        describe(options, where)
        tell_stats = stats_printer(options, network)
        restrict(options, network, stack, complain)
        tell_ready(options.ready_fd)
        status = ending.run(options.tap_name)
        tell_stats()
        return status


def namespace_of(options: Options, wish: str) -> Namespace:
    """Where listening programs are looked for. Raises Failure."""
    if options.target_type != "netns" or options.netns_type == "tapfd":
        raise Failure(f"--forward {wish}: needs a namespace, by process or file", USAGE)
    if options.sandbox:
        raise Failure(f"--forward {wish}: --enable-sandbox hides who listens", USAGE)
    path = options.target
    if options.netns_type == "pid":
        path = f"/proc/{options.target}/ns/net"
    try:
        return Namespace(os.stat(path).st_ino)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None


# --- setting up -----------------------------------------------------------------------------------


def open_port(
    options: Options, errand: netns.Errand | None, stack: ExitStack
) -> TapPort | BessPort:
    if options.target_type == "bess":
        return _wait_for_uml(options, stack)
    if errand is None:
        fd = _checked_fd(options.target, "the TAP's descriptor")
        return tap.tap_port(fd, options.mtu, stack, vnet=_has_vnet(fd))
    try:
        fd = errand.fd()
    except netns.NamespaceError as error:
        raise Failure(str(error)) from None
    return tap.tap_port(fd, options.mtu, stack)


def _wait_for_uml(options: Options, stack: ExitStack) -> BessPort:
    from nic import bess

    try:
        with bess.listen(options.target) as listener:
            sock, _ = listener.accept()
    except OSError as error:
        raise Failure(f"{options.target}: {error.strerror or error}") from None
    port = bess.BessPort(sock, options.mtu)
    stack.callback(port.close)
    return port


def _checked_fd(word: str | int, what: str) -> int:
    try:
        fd = int(word)
        os.fstat(fd)
    except (ValueError, OSError):
        raise Failure(f"{word}: {what} must be open", USAGE) from None
    return fd


def _has_vnet(fd: int) -> bool:
    try:
        return tun.has_vnet(fd)
    except OSError:
        raise Failure(f"descriptor {fd} is no TAP device") from None


def make_config(options: Options) -> Config:
    with named(OPTIONS | {"network": "--cidr"}):
        fields = {"dns_enabled": not options.disable_dns} | more_fields(options)
        fields |= not_given(options.network, options.fields)
        return Config(
            **options.families(),
            host_loopback=not options.disable_host_loopback,
            outbound_addr=outbound(options.outbound_addr),
            outbound_addr6=outbound6(options.outbound_addr6),
            **forward_fields(options.forwards),
            **fields,
        )


def more_fields(options: Options) -> dict[str, Any]:
    """What slirp4netns has no option for."""
    args = options.network
    if args is None:
        return {}
    fields: dict[str, Any] = service_fields(args) | {"restrict": args.restrict}
    if args.dns == NO_DNS:
        fields["dns_enabled"] = False
    if args.port_share is not None:
        fields["port_share"] = args.port_share
    return fields


def open_api_socket(
    path: str,
    network: Network,
    guest: str,
    stack: ExitStack,
    listener: socket.socket | None = None,
) -> ApiSocket:
    from slirp.control.slirp4netns import ApiSocket

    try:
        api = ApiSocket(path, network, guest, listener)
    except OSError as error:
        raise Failure(f"--api-socket {path}: {error.strerror or error}") from None
    stack.callback(api.close)
    return api


def namespace_pid(options: Options) -> int | None:
    """A process in the namespace, by which its sockets' owners can be found."""
    if options.target_type != "netns" or options.netns_type != "pid":
        return None
    return int(options.target)


def restrict(options: Options, network: Network, stack: ExitStack, complain: Say) -> None:
    """Give up what is not needed any more."""
    if not (options.sandbox or options.seccomp):
        return
    from slirp.linux import sandbox, seccomp

    load = seccomp.seccomp_loader() if options.seccomp else None
    if options.sandbox:
        if options.split:
            raise Failure("--split opens files as it goes, which a sandbox forbids", USAGE)
        if (
            network.config.dns_enabled
            and network.config.resolvers is None
            and not sandbox.is_shown(RESOLV_CONF)
        ):
            follow_resolvers(network, stack)
        try:
            sandbox.enter_sandbox(() if options.control is None else sandbox.CONTROL_MODULES)
        except (netns.NamespaceError, OSError) as error:
            raise Failure(f"--enable-sandbox: {error}") from None
    if load is not None:
        if not options.sandbox:
            sandbox.preload()
        complain("seccomp refuses " + " ".join(load()))


def follow_resolvers(network: Network, stack: ExitStack) -> None:
    """Have a process outside say which resolvers are named by a file that the sandbox hides."""
    from slirp.linux.sandbox import ResolvKeeper
    from slirp.services.resolv import resolvers

    keeper = ResolvKeeper(RESOLV_CONF)
    stack.callback(keeper.close)

    def news() -> None:
        text = keeper.read()
        if not text:  # it has ended: what was known last stays
            network.unwatch(keeper.fileno())
            return
        network.use_resolvers(resolvers(text.decode("utf-8", "replace")))

    network.use_resolvers(())
    network.watch(keeper.fileno(), news)


# --- the end --------------------------------------------------------------------------------------


class Ending:
    """Everything that may end the run, and the exit status that it gives."""

    def __init__(self, network: Network, complain: Say) -> None:
        self._network = network
        self._complain = complain
        self._status = 0
        self._pidfd = -1
        self._inode = 0

    def on_signal(self, signals: SignalFd) -> None:
        def ended() -> None:
            for number, _, _ in signals.read():
                self._stop(128 + number)

        self._network.watch(signals.fileno(), ended)

    def on_exit_fd(self, fd: int) -> None:
        _checked_fd(fd, "the exit descriptor")
        self._network.watch(fd, lambda: self._stop(0))

    def follow(self, pid: int) -> None:
        """End when no process is left in the namespace of `pid`."""
        with contextlib.suppress(OSError):  # it has ended already
            self._inode = os.stat(f"/proc/{pid}/ns/net").st_ino
        self._follow(pid)

    def _follow(self, pid: int | None) -> None:
        while pid is not None:
            try:
                self._pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                pid = self._another()
                continue
            except OSError as error:
                self._complain(f"cannot wait for process {pid}: {error.strerror}")
                return
            self._network.watch(self._pidfd, self._process_ended)
            return
        self._complain("the last process of the network namespace has ended")
        self._stop(0)

    def _process_ended(self) -> None:
        self._network.unwatch(self._pidfd)
        self.close()
        self._follow(self._another())

    def _another(self) -> int | None:
        """A process in the namespace that we can see; None inside a sandbox, which sees nothing."""
        with contextlib.suppress(OSError):
            for name in filter(str.isdecimal, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}/ns/net").st_ino == self._inode:
                        return int(name)
        return None

    def succeeded(self) -> None:
        """Another process goes on."""
        self._complain("handed over to another process")
        self._network.abandon()
        self._stop(0)

    def stop(self) -> None:
        """Somebody asked for it: that is success."""
        self._stop(0)

    def _stop(self, status: int) -> None:
        self._status = status
        self._network.stop()

    def run(self, tap_name: str) -> int:
        try:
            self._network.run()
        except DeviceGone as error:
            self._complain(f"{tap_name}: {error.strerror}")
            return FAILED
        return self._status

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
