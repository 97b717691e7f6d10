"""What the verbs of the control protocol do, on one network.

`Verbs.answer(request)` gives the result of a request that slirp.control.protocol found to be good,
or raises its Refusal. It runs in the network's own thread, between two turns' packets, so nothing
here may wait: files are opened, small ones written, and /proc is never walked (owners of sockets
are the client's to find, slirp.control.owners).

`events` and `stop` go on after their result; the connection does that (slirp.control.server).

Does not do: the form of requests, connections.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

from slirp import __version__
from slirp.control.heritage import announced
from slirp.control.metrics import metrics
from slirp.control.protocol import VERBS, VERSIONS, Refusal, Request, shown
from slirp.control.rates import Rates
from slirp.errors import ConfigError
from slirp.events import KINDS
from slirp.network import Network, describe_forward

Will: TypeAlias = tuple[Mapping[str, Any], Sequence[int]]  # values, and descriptors

FLOWS_LIMIT: Final = 1000  # flows of one listing, unless more are asked for


class Verbs:
    """The verbs of one network.

    `name` is what it is called in listings (`slirp run curl …`); `namespace_pid` tells a process in
    its guests' namespace, where there is one.
    """

    def __init__(
        self,
        network: Network,
        *,
        name: str = "",
        namespace_pid: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.network = network
        self.name = name
        self.namespace_pid = namespace_pid
        self.heritage: Callable[[], Will] | None = None  # what a successor needs, where one can be
        self.will: Will = ({}, [])  # as it was announced last
        self._rates = Rates()
        self._began = network.now

    def answer(self, request: Request) -> Mapping[str, Any]:
        """The result. Raises Refusal."""
        try:
            return _HANDLERS[request.verb](self, request.args)
        except ConfigError as error:
            raise Refusal("argument", str(error)) from None
        except OSError as error:
            raise Refusal("system", _told(error)) from None

    def _hello(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "versions": list(VERSIONS),
            "slirp": __version__,
            "pid": os.getpid(),
            "verbs": list(VERBS),
        }

    def _status(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        network = self.network
        stats = network.stats()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "name": self.name,
            "network": network.config.network,
            "gateway": network.gateway,
            "dns": network.dns if network.config.dns_enabled else None,
            "mtu": network.mtu,
            "up": round(network.now - self._began, 3),
            "ports": len(stats["ports"]),
            "guests": len(network.guests()),
            "flows": stats["tcp"]["flows"] + stats["udp"]["mappings"],
            "forwards": len(network.forwards()),
            "capture": network.capture() is not None,
        }

    def _config(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"config": self.network.config.plain()}

    def _guests(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"guests": self.network.guests()}

    def _leases(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"leases": self.network.leases()}

    def _flows(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        proto, guest = args.get("proto"), args.get("guest")
        if proto not in (None, "tcp", "udp"):
            raise Refusal("argument", f"proto {shown(proto)}: is tcp or udp")
        rated = self._rates.added(self.network.each_flow(), self.network.now)
        wanted = [
            flow
            for flow in rated
            if proto in (None, flow["proto"]) and guest in (None, flow["guest"].rpartition(":")[0])
        ]
        limit = args.get("limit", FLOWS_LIMIT)
        return {
            "flows": list(islice(wanted, limit)),
            "more": max(0, len(wanted) - limit),
            "namespace_pid": self.namespace_pid(),
        }

    def _kill(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.network.kill_flow(args["flow"]):
            raise Refusal("missing", f"flow {shown(args['flow'])}: there is none so called")
        return {"flow": args["flow"]}

    def _stats(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"stats": self.network.stats()}

    def metrics(self) -> str:
        """All counters for Prometheus."""
        network = self.network
        gauges = {
            "up_seconds": network.now - self._began,
            "guests": len(network.guests()),
            "leases": len(network.leases()),
            "forwards": len(network.forwards()),
            "capture_running": int(network.capture() is not None),
        }
        return metrics(network.stats(), gauges, __version__)

    def _metrics(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": self.metrics()}

    def _forwards_list(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"forwards": [describe_forward(found) for found in self.network.forwards()]}

    def _forwards_add(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        opened = self.network.forward(args["spec"])
        return {"forwards": [describe_forward(forward) for forward in opened]}

    def _forwards_remove(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self.network.remove_forward(args["id"]):
            raise Refusal("missing", f"forward {args['id']}: there is none of that number")
        return {"id": args["id"]}

    def _capture_start(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        options = {key: value for key, value in args.items() if key != "file"}
        return {"capture": self.network.start_capture(_absolute(args["file"]), **options)}

    def _capture_status(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"capture": self.network.capture()}

    def _capture_stop(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        stopped = self.network.stop_capture()
        if stopped is None:
            raise Refusal("missing", "capture: none is running")
        return {"capture": stopped}

    def _events(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        kinds = args.get("kinds") or list(KINDS)
        for kind in kinds:
            if kind not in KINDS:
                raise Refusal("argument", f"kinds: {shown(kind)} is none of {', '.join(KINDS)}")
        return {"events": kinds}

    def _save(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        path = _absolute(args["file"])
        return {"file": path, **self.network.save(path)}

    def _handover(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.heritage is None:
            raise Refusal(
                "unsupported", "handover: this network was not started by a command that can"
            )
        self.will = self.heritage()
        return announced(*self.will)

    def _stop(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise Refusal("argument", f"file {shown(path)}: must be absolute; nobody knows from where")
    return path


def _told(error: OSError) -> str:
    """In one line."""
    where = f"{error.filename}: " if error.filename else ""
    why = error.strerror or str(error)
    if error.errno == errno.EROFS or (error.errno == errno.ENOENT and where.startswith("/")):
        why += "; a network in a sandbox sees /etc and /run only, and read-only"
    return where + why


_HANDLERS: Final[Mapping[str, Callable[[Verbs, Mapping[str, Any]], Mapping[str, Any]]]] = {
    "hello": Verbs._hello,
    "status": Verbs._status,
    "config": Verbs._config,
    "guests": Verbs._guests,
    "leases": Verbs._leases,
    "flows": Verbs._flows,
    "kill": Verbs._kill,
    "stats": Verbs._stats,
    "metrics": Verbs._metrics,
    "forwards.list": Verbs._forwards_list,
    "forwards.add": Verbs._forwards_add,
    "forwards.remove": Verbs._forwards_remove,
    "capture.start": Verbs._capture_start,
    "capture.status": Verbs._capture_status,
    "capture.stop": Verbs._capture_stop,
    "events": Verbs._events,
    "save": Verbs._save,
    "handover": Verbs._handover,
    "stop": Verbs._stop,
}
