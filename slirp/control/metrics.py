"""A network's counters in Prometheus's text format, version 0.0.4.

`Network.stats()` is a tree of counters and gauges; each leaf becomes a sample whose name is its
path (`slirp_tcp_octets_to_guest_total`). What is counted by reason is one family with the reason as
its label (`slirp_refused_total{reason="ttl"}`), and so are the ports. New counters appear by
themselves; GAUGES names the leaves that can fall.

Does not do: histograms, timestamps, OpenMetrics' exemplars; per-flow samples, whose number is
unbounded (ask for `flows`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Leaves that go up and down, by their path.
GAUGES: Final = frozenset(
    {"tcp_flows", "tcp_lingering", "udp_mappings", "port_sockets", "port_flows"}
    | {"up_seconds", "guests", "leases", "forwards", "capture_running", "info"}
)
# Groups whose leaves are reasons, not names: the label that they get.
BY_REASON: Final = {"malformed": "reason", "refused": "reason"}


def metrics(stats: Mapping[str, Any], gauges: Mapping[str, float], version: str) -> str:
    """The text. `gauges`: what is no counter of the network's, by name."""
    families: dict[str, list[tuple[str, float]]] = {}
    families["info"] = [(f'{{version="{_escaped(version)}"}}', 1)]
    for name, value in gauges.items():
        families[name] = [("", value)]
    for name, labels, value in _samples(stats):
        families.setdefault(name, []).append((labels, value))
    return "".join(_family(name, samples) for name, samples in sorted(families.items()))


def _samples(stats: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for group, value in stats.items():
        if group == "ports":
            for port, counters in value.items():
                label = f'{{port="{_escaped(port)}"}}'
                for name, count in counters.items():
                    yield f"port_{_name(name)}", label, count
        elif group in BY_REASON and isinstance(value, Mapping):
            for reason, count in value.items():
                yield _name(group), f'{{{BY_REASON[group]}="{_escaped(str(reason))}"}}', count
        else:
            yield from _leaves(group, value)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str, float]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{path}_{name}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield _name(path), "", value


def _family(name: str, samples: list[tuple[str, float]]) -> str:
    kind = "gauge" if name in GAUGES else "counter"
    full = f"slirp_{name}" if kind == "gauge" else f"slirp_{name}_total"
    lines = [f"# TYPE {full} {kind}"]
    lines += [f"{full}{labels} {value:g}" if value % 1 else f"{full}{labels} {int(value)}"
              for labels, value in samples]  # fmt: skip
    return "\n".join(lines) + "\n"


def _name(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", text)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
