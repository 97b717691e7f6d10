"""The screen of `slirp top`: one table of flows, a line of status, guests and drops beside it.

Once per interval the network is asked for `status`, `flows`, `guests` and `stats`; in between
nothing happens but what keys do. The cursor stays on its flow when the order changes. What comes
from guests is shown with control characters as `.` and without markup.

Does not do: history, graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, Input, Static

from slirp.cli.tables import cell, octets, seconds
from slirp.control.client import Connection, ControlError, Unreachable

RATE_TO_GUEST: Final = "octets_per_s_to_guest"
RATE_TO_HOST: Final = "octets_per_s_to_host"
# heading: what it sorts by; largest first where it is a number
COLUMNS: Final = {
    "ID": "id", "PROTO": "proto", "STATE": "state", "GUEST": "guest", "GUEST NAME": "guest_name",
    "REMOTE": "remote", "REMOTE NAME": "remote_name",
    "TO GUEST": "octets_to_guest", "TO HOST": "octets_to_host", "DOWN/S": RATE_TO_GUEST,
    "UP/S": RATE_TO_HOST, "RTT": "rtt", "RESENT": "retransmitted", "AGE": "age",
}  # fmt: skip
DROPS: Final = ("refused", "malformed")
DROPS_SHOWN: Final = 12
NAME_SHOWN: Final = 32  # letters


class Top(App[None]):
    """The application."""

    CSS = """
    #status { height: 1; background: $primary; }
    #side { width: 38; }
    #filter { display: none; }
    #filter.asked { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("s", "sort", "Sort by the next"),
        ("f", "filter", "Filter"),
        ("k", "kill", "Kill"),
        ("c", "capture", "Capture"),
        ("q", "quit", "Quit"),
    ]

    def __init__(self, network: Connection, interval: float, capture_file: str) -> None:
        super().__init__()
        self.network = network
        self.ended = ""  # why there is nothing more to watch
        self.sorted_by = RATE_TO_GUEST
        self.wanted = ""
        self.said = ""  # what came of the last key
        self._interval = interval
        self._capture_file = capture_file
        self._flows: list[dict[str, Any]] = []

    def compose(self) -> ComposeResult:
        """The parts of the screen."""
        yield Static(id="status")
        with Horizontal():
            yield DataTable(id="flows", cursor_type="row")
            with Vertical(id="side"):
                yield Static(id="guests")
                yield Static(id="drops")
        yield Input(placeholder="part of an address, a protocol, a state …", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        table = self.query_one("#flows", DataTable)
        for heading in COLUMNS:
            table.add_column(heading, key=heading)
        table.focus()
        self.look()
        self.set_interval(self._interval, self.look)

    def look(self) -> None:
        """Ask the network, and show what it says."""
        if not self.query("#status"):
            return  # the screen is being taken down, and the timer does not know yet
        try:
            status = self.network.ask("status")
            self._flows = self.network.ask("flows")["flows"]
            guests = self.network.ask("guests")["guests"]
            stats = self.network.ask("stats")["stats"]
        except (Unreachable, ControlError) as error:
            self.ended = str(error)
            self.exit()
            return
        self._show_status(status)
        self._show_flows()
        lines = [f"{guest['address']:15} {cell(guest['hostname'])}" for guest in guests]
        self._show("#guests", "GUESTS", lines)
        self._show("#drops", "DROPS", list(_drops(stats)))

    def _show_status(self, status: dict[str, Any]) -> None:
        words = [
            f"{status['network']}  up {seconds(status['up'])}",
            f"{status['guests']} guests, {status['flows']} flows, {status['forwards']} forwards",
            f"by {self._heading()}",
        ]
        words += [f"filter {self.wanted}"] if self.wanted else []
        words += ["capturing"] if status["capture"] else []
        words += [self.said] if self.said else []
        self.query_one("#status", Static).update(Text("  ·  ".join(map(cell, words))))

    def _heading(self) -> str:
        return next(heading for heading, name in COLUMNS.items() if name == self.sorted_by)

    def _show_flows(self) -> None:
        table = self.query_one("#flows", DataTable)
        at = self._selected()
        table.clear()
        for flow in self.shown():
            table.add_row(*map(Text, _row(flow)), key=flow["id"])
            if flow["id"] == at:
                table.move_cursor(row=table.row_count - 1)

    def shown(self) -> list[dict[str, Any]]:
        """The flows that are wanted, in their order."""
        found = [flow for flow in self._flows if self.wanted in " ".join(_row(flow)).lower()]

        def key(flow: dict[str, Any]) -> tuple[float, str]:
            value = flow.get(self.sorted_by)
            return (-value, "") if isinstance(value, int | float) else (0.0, str(value or "~"))

        return sorted(found, key=key)

    def _show(self, where: str, heading: str, lines: list[str]) -> None:
        text = Text(heading, style="bold")
        for line in lines:
            text.append("\n" + cell(line), style="not bold")
        self.query_one(where, Static).update(text)

    def _selected(self) -> str | None:
        """The id of the flow under the cursor."""
        table = self.query_one("#flows", DataTable)
        if not table.is_valid_row_index(table.cursor_row):
            return None
        return table.coordinate_to_cell_key((table.cursor_row, 0)).row_key.value  # type: ignore[no-any-return, arg-type, unused-ignore] # a pair is a Coordinate

    # Keys

    def action_sort(self) -> None:
        """By the next column."""
        names = list(COLUMNS.values())
        self.sorted_by = names[(names.index(self.sorted_by) + 1) % len(names)]
        self.look()

    def action_filter(self) -> None:
        """Ask for what is wanted."""
        field = self.query_one("#filter", Input)
        field.add_class("asked")
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """It was said."""
        self.wanted = event.value.strip().lower()
        event.input.remove_class("asked")
        self.query_one("#flows", DataTable).focus()
        self.look()

    def action_kill(self) -> None:
        """End the flow under the cursor."""
        flow = self._selected()
        if flow is not None:
            self._act("kill", f"{flow} was ended", flow=flow)

    def action_capture(self) -> None:
        """Start a capture, or stop the one that runs."""
        if self.network.ask("capture.status")["capture"] is None:
            self._act("capture.start", f"to {self._capture_file}", file=self._capture_file)
        else:
            self._act("capture.stop", "the capture was stopped")

    def _act(self, verb: str, done: str, **args: Any) -> None:
        try:
            self.network.ask(verb, **args)
            self.said = done
        except ControlError as error:
            self.said = str(error)
        except Unreachable:  # the next look says so
            pass
        self.look()


def _row(flow: dict[str, Any]) -> list[str]:
    return [
        cell(flow["id"]),
        cell(flow["proto"]),
        cell(flow["state"]),
        cell(flow["guest"]),
        _name(flow.get("guest_name")),
        cell(flow["remote"]),
        _name(flow.get("remote_name")),
        octets(flow.get("octets_to_guest")),
        octets(flow.get("octets_to_host")),
        octets(flow.get(RATE_TO_GUEST)),
        octets(flow.get(RATE_TO_HOST)),
        seconds(flow.get("rtt")),
        cell(flow.get("retransmitted")),
        seconds(flow["age"]),
    ]


def _name(value: str | None) -> str:
    """The end of a name says more than its beginning, where it is too long."""
    text = cell(value)
    return text if len(text) <= NAME_SHOWN else "…" + text[1 - NAME_SHOWN :]


def _drops(stats: dict[str, Any]) -> Iterator[str]:
    counted = [(count, reason) for kind in DROPS for reason, count in stats[kind].items() if count]
    counted += [(port["lost"], f"{name}: no room") for name, port in stats["ports"].items()]
    for count, reason in sorted(counted, reverse=True)[:DROPS_SHOWN]:
        if count:
            yield f"{count:8} {reason}"
