"""Screen of ``rtloop top`` with one loop: figures, signals, and parameters that can be changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, Static

from rtloop.errors import RtloopError
from rtloop.live.value_text import format_limits, format_value
from rtloop.tools.top.live_view import signal_table
from rtloop.tools.top.loop_watch import LoopView, LoopWatch
from rtloop.tools.top.view import details, facts, histogram, timeline, title

if TYPE_CHECKING:
    from rtloop.live.connect import Connection
    from rtloop.live.declared_parameters import Parameter
    from rtloop.tools.top.sampler import Row, Sample
    from rtloop.zenoh.connection import RemoteConnection

__all__ = ["LoopScreen"]

_BAR_HEIGHT = 7


class ParameterTable(DataTable[Text]):
    """The parameters of a loop."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Change"),
        Binding("left", "app.back", show=False),
        Binding("pageup", "screen.page(-1)", show=False),
        Binding("pagedown", "screen.page(1)", show=False),
    ]


class ParameterInput(Input):
    """The line in which a value is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Set"),
        Binding("up", "screen.next_parameter(-1)", "Also change", key_display="Up Down"),
        Binding("down", "screen.next_parameter(1)", show=False),
        Binding("escape", "screen.give_up", "Leave unchanged"),
    ]


class LoopScreen(Screen[None]):
    """One loop, live.

    Parameters
    ----------
    key : str
        Key of the loop's row.
    connect : callable
        Returns a connection to the loop, for its signals and parameters.
    """

    CSS = """
    LoopScreen VerticalScroll { padding: 0 1; height: 1fr; }
    LoopScreen .part { height: auto; margin-bottom: 1; }
    LoopScreen .half { width: 1fr; height: auto; padding-right: 2; }
    LoopScreen Horizontal { height: auto; margin-bottom: 1; }
    LoopScreen #parameters { height: auto; max-height: 14; margin-bottom: 1; }
    LoopScreen #told { height: auto; padding: 0 1; }
    LoopScreen #edit { height: 3; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "Back"),
        Binding("left", "app.back", "Back", show=False),
        Binding("backspace", "app.back", "Back", show=False),
    ]

    def __init__(self, key: str, connect: Callable[[], Connection | RemoteConnection]) -> None:
        super().__init__()
        self.key = key
        self._watch = LoopWatch(connect)
        self._row: Row | None = None
        self._view = LoopView()
        self._is_paused = False
        self._edited = ""  # of the parameter that is being changed
        self._staged: dict[str, str] = {}  # typed values, by name
        self._is_sending = False

    def compose(self) -> ComposeResult:
        """Lay out the parts."""
        with VerticalScroll():
            yield Static(id="title", classes="part")
            yield Static(id="figures", classes="part")
            yield Static(id="facts", classes="part")
            yield ParameterTable(id="parameters", cursor_type="row", zebra_stripes=True)
            yield Static(id="signals", classes="part")
            with Horizontal():
                yield Static(id="latency", classes="half")
                yield Static(id="execution", classes="half")
            yield Static(id="timeline", classes="part")
        yield Static(id="told")
        yield ParameterInput(id="edit")
        yield Footer()

    def on_mount(self) -> None:
        """Show the present figures."""
        self._table.display = self._signals.display = self._told.display = self._input.display = False
        self.call_after_refresh(self._draw)

    def on_unmount(self) -> None:
        """Close the connection."""
        self._watch.close()

    def on_resize(self) -> None:
        """Redraw for the new width."""
        self._draw()

    @property
    def _table(self) -> ParameterTable:
        return self.query_one("#parameters", ParameterTable)

    @property
    def _input(self) -> ParameterInput:
        return self.query_one("#edit", ParameterInput)

    @property
    def _signals(self) -> Static:
        return self.query_one("#signals", Static)

    @property
    def _told(self) -> Static:
        return self.query_one("#told", Static)

    async def poll(self) -> None:
        """Read the signals and parameters, on another thread."""
        view = await asyncio.to_thread(self._watch.poll)
        if view.problem and self._view.values:
            return  # the loop has ended: these were the last values
        self._view = view
        with suppress(NoMatches):  # the screen was closed meanwhile
            self._draw_parameters()
            self._draw_signals()

    def show(self, sample: Sample, *, is_paused: bool) -> None:
        """Bring the figures up to date; a loop that has ended keeps its last ones."""
        row = next((row for row in sample.rows if row.key == self.key), None)
        self._is_paused = is_paused
        if row is not None:
            self._row = row
            self._draw()
        elif self._row is not None:
            ended = Text(f"{self._row.reader.name} has ended; these were its last figures", "bold yellow")
            self.query_one("#title", Static).update(Group(title(self._row), ended))

    @property
    def _width(self) -> int:
        return max(30, self.size.width - 6)

    def _draw(self) -> None:
        row = self._row
        if row is None or not self.is_mounted:
            return
        half = max(20, self._width // 2 - 3)
        parts: dict[str, Any] = {
            "title": Text.assemble(title(row), ("   PAUSED" if self._is_paused else "", "bold yellow")),
            "figures": details(row),
            "facts": facts(row),
            "latency": _headed("latency", histogram(row.stats.latency, row.latency, half, _BAR_HEIGHT)),
            "execution": _headed("execution", histogram(row.stats.execution, row.execution, half, _BAR_HEIGHT)),
            "timeline": _headed(
                "wake-up latency, cycle by cycle",
                timeline(row.stats.records, row.stats.settings["period_ns"], max(20, self._width - 10), _BAR_HEIGHT),
                "red: a cycle that overran",
            ),
        }
        for name, content in parts.items():
            self.query_one(f"#{name}", Static).update(content)
        self._draw_signals()

    def _draw_signals(self) -> None:
        view = self._view
        self._signals.display = bool(view.traces or view.problem)
        if view.problem:
            self._signals.update(Text(view.problem, "yellow"))
        elif view.traces:
            self._signals.update(signal_table(view, self._width))

    # Parameters.

    def _draw_parameters(self) -> None:
        table, declared = self._table, self._view.declared
        if list(declared) != [key.value for key in table.rows]:
            table.clear(columns=True)
            for head in ("parameter", "value", "unit", "limits", "type"):
                table.add_column(head, key=head)
            for name, one in declared.items():
                kind = one.kind + (f" {one.shape}" if one.shape else "")
                cells = (name, "", one.unit, format_limits(one.low, one.high), kind)
                table.add_row(*map(Text, cells), key=name)
            table.display = bool(declared)
            if declared and not self._edited:
                table.focus(scroll_visible=False)
        for name in declared:
            shown = self._value_text(name)
            if table.get_cell(name, "value") != shown:
                table.update_cell(name, "value", shown, update_width=True)

    def _value_text(self, name: str) -> Text:
        text = Text(self._format(name), "bold")
        if name in self._staged:
            text.append(f" → {self._staged[name]}", "bold yellow")
        return text

    def _format(self, name: str) -> str:
        return format_value(self._view.values.get(name, ""))

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Change the selected parameter, on Enter or a click."""
        event.stop()
        if event.row_key.value is not None and not self._is_sending:
            self._tell(Text())
            self._edit(event.row_key.value)

    def _edit(self, name: str) -> None:
        self._edited = name
        one = self._view.declared[name]
        line, about = self._input, _describe(one)
        line.border_title = Text(f"{name}{about}, now {self._format(name)}")
        line.value = self._staged.get(name, self._format(name))
        line.display = True
        line.focus()
        line.select_all()

    def _stage(self) -> None:
        """Note the typed text; a value that was left as shown changes nothing."""
        text = self._input.value
        if text.strip() == self._format(self._edited):
            self._staged.pop(self._edited, None)
        else:
            self._staged[self._edited] = text
        self._draw_parameters()

    def action_next_parameter(self, step: int) -> None:
        """Note the typed value, and change the next parameter together with it."""
        names = list(self._view.declared)
        if self._is_sending or self._edited not in names:
            return
        self._stage()
        at = (names.index(self._edited) + step) % len(names)
        self._table.move_cursor(row=at)
        self._edit(names[at])

    def action_give_up(self) -> None:
        """Leave all parameters as they are."""
        self._end_edit()
        self._tell(Text())

    def action_page(self, step: int) -> None:
        """Scroll by a page."""
        scroll = self.query_one(VerticalScroll)
        if step > 0:
            scroll.scroll_page_down()
        else:
            scroll.scroll_page_up()

    async def on_input_submitted(self, event: Input.Submitted) -> None:
        """Set all values that were typed, before the same step of the loop."""
        event.stop()
        if self._is_sending:
            return
        self._stage()
        if not self._staged:
            self.action_give_up()
            return
        self._is_sending = True
        self.run_worker(self._send(dict(self._staged)))

    async def _send(self, texts: dict[str, str]) -> None:
        try:
            said = await asyncio.to_thread(self._watch.set, texts)
        except (RtloopError, KeyError, OSError) as error:
            reason = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            self._tell(Text(f"nothing was changed: {reason}", "bold red"))
        else:
            self._end_edit()
            self._tell(Text("\n".join(said), "green"))
            await self.poll()
        finally:
            self._is_sending = False

    def _end_edit(self) -> None:
        self._edited = ""
        self._staged.clear()
        self._input.display = False
        self._draw_parameters()
        self._table.focus(scroll_visible=False)

    def _tell(self, text: Text) -> None:
        self._told.display = bool(text.plain)
        self._told.update(text)


def _describe(one: Parameter) -> str:
    limits = format_limits(one.low, one.high)
    unit = f" {one.unit}" if one.unit else ""
    return f": {limits}{unit}" if limits else f" ({one.unit})" if unit else ""


def _headed(head: str, content: Any, note: str = "log axes; bright: new") -> Group:
    return Group(Text.assemble((head, "bold"), (f"  {note}", "dim")), content)
