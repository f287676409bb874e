"""Application of ``rtloop top``: a table of all loops, from which the screen of one is opened."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from rtloop.tools.top.loop_screen import LoopScreen
from rtloop.tools.top.view import COLUMNS, Cell, Column, Line, cell, fitting, notes, widths

if TYPE_CHECKING:
    from rtloop.tools.top.sampler import Row, Sample, Sampler

__all__ = ["TopApp"]

#: Number of last cycles that the view of one loop shows.
_RECORDS = 4096
_INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: Actions that only apply to the table.
_TABLE_ACTIONS = ("sort_by", "sort_head", "turn_round", "move")

_KEYS = (
    ("Up Down PgUp PgDn Home End, j k", "move from loop to loop"),
    ("Enter", "one loop: its signals, parameters, histograms and last cycles"),
    ("Enter on a parameter", "type a value; Enter sets it, Up and Down change more of them together, Esc none"),
    ("Esc, Left", "back"),
    ("< >", "sort by the column to the left, or to the right"),
    ("N P", "sort by name, by process"),
    ("L M O", "sort by greatest latency, by missed releases, by overruns"),
    ("R, I", "reverse the order"),
    ("p, Space", "pause and resume the screen; the loops run on"),
    ("+ -", "refresh less often, more often"),
    ("r, Ctrl+L", "refresh now"),
    ("h, ?, F1", "this help"),
    ("q, F10, Ctrl+C", "quit"),
)


#: Key of the column that has all figures of a loop.
_OTHERS = "others"


def _cells(columns: list[Column], row: Row) -> list[Cell]:
    return [cell(column, row) for column in columns]


class LoopTable(DataTable[Text | Line]):
    """The table of all loops: their names, which stay in place, and a line with all other cells of each loop.

    A column for each figure would cost half of the CPU time of a refresh.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Loop")]


class HelpScreen(ModalScreen[None]):
    """The keys and the columns."""

    CSS = """
    HelpScreen { align: center middle; }
    #help { width: 84; max-width: 95%; height: auto; max-height: 95%; border: round $primary; padding: 0 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, "app.pop_screen", "Back", show=False)
        for key in ("escape", "q", "h", "question_mark", "f1", "enter", "left")
    ]

    def compose(self) -> ComposeResult:
        """Make the text."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for keys, meaning in _KEYS:
            table.add_row(Text(keys, "bold"), meaning)
        table.add_row("", "")
        for column in COLUMNS:
            table.add_row(Text(column.head, "bold"), column.meaning)
        with VerticalScroll(id="help"):
            yield Static(table)


class TopApp(App[None]):
    """All running loops, live.

    Parameters
    ----------
    sampler : Sampler
        Where the figures come from.
    interval : float
        Seconds from refresh to refresh.
    """

    TITLE = "rtloop top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #status { height: auto; padding: 0 1; }
    DataTable { height: 1fr; }
    #empty { height: auto; padding: 1 2; }
    #notes { height: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("f10", "quit", "Quit", show=False),
        Binding("ctrl+c", "quit", "Quit", show=False, priority=True),
        Binding("h", "help", "Help"),
        Binding("question_mark", "help", "Help", show=False),
        Binding("f1", "help", "Help", show=False),
        Binding("less_than_sign", "sort_by(-1)", "Sort", key_display="< >"),
        Binding("greater_than_sign", "sort_by(1)", "Sort", show=False),
        Binding("R,I", "turn_round", "Reverse", key_display="R"),
        Binding("N", "sort_head('NAME')", show=False),
        Binding("P", "sort_head('PID')", show=False),
        Binding("L", "sort_head('LAT MAX')", show=False),
        Binding("M", "sort_head('MISSED')", show=False),
        Binding("O", "sort_head('OVER')", show=False),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("plus,equals_sign", "slower", "Slower", key_display="+"),
        Binding("minus", "faster", "Faster", key_display="-"),
        Binding("r,ctrl+l", "refresh_now", "Refresh", show=False),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
    ]

    def __init__(self, sampler: Sampler, interval: float) -> None:
        super().__init__()
        self._sampler = sampler
        self.interval = interval
        self.is_paused = False
        self.sort_column = 0
        self.is_reversed = False
        self._last: Sample | None = None
        self._frame: object = None
        self._busy = asyncio.Lock()
        self._timer: Any = None

    def compose(self) -> ComposeResult:
        """Lay out the table."""
        yield Static(id="status")
        yield LoopTable(id="loops", cursor_type="row", zebra_stripes=True)
        yield Static(f"{self._sampler.describe_none()} One that starts appears here.", id="empty")
        yield Static(id="notes")
        yield Footer()

    async def on_mount(self) -> None:
        """Take the first sample."""
        self._restart_timer()
        await self._refresh()

    def on_resize(self) -> None:
        """Show as many columns as there is room for."""
        self._show()

    def on_unmount(self) -> None:
        """Close the readers."""
        self._sampler.close()

    @property
    def _table(self) -> LoopTable:
        return self.screen_stack[0].query_one("#loops", LoopTable)

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(self.interval, self._tick)

    async def _tick(self) -> None:
        if not self.is_paused:
            await self._refresh()

    async def _refresh(self) -> None:
        """Sample on another thread, because searching /proc may take long, and show the result."""
        if self._busy.locked() or not self.screen_stack:
            return  # the machine is slower than the interval, or the program is ending
        async with self._busy:
            screen = self.screen
            key = screen.key if isinstance(screen, LoopScreen) else ""
            self._last = await asyncio.to_thread(
                self._sampler.sample, records=_RECORDS if key else 0, records_of=key or None
            )
            if isinstance(screen, LoopScreen):
                await screen.poll()
        if self.is_running and self.screen_stack:
            self._show()

    def _show(self) -> None:
        if self._last is None:
            return
        if isinstance(self.screen, LoopScreen):
            self.screen.show(self._last, is_paused=self.is_paused)
        self._show_status()
        self._show_table(self._last.rows)

    def _show_status(self) -> None:
        sample = self._last
        if sample is None:
            return
        count = len(sample.rows)
        order = "falling" if self.is_reversed else "rising"
        status = Text.assemble(
            ("rtloop top", "bold"),
            f"   {count} loop{'' if count == 1 else 's'}   every {self.interval:g} s   "
            f"by {COLUMNS[self.sort_column].head}, {order}",
            ("   PAUSED" if self.is_paused else "", "bold yellow"),
        )
        base = self.screen_stack[0]
        base.query_one("#status", Static).update(status)
        base.query_one("#empty", Static).display = not sample.rows
        base.query_one("#notes", Static).update(Text("\n".join(notes(sample)), "yellow"))

    def _show_table(self, rows: list[Row]) -> None:
        table = self._table
        selected = self._selected()
        column = COLUMNS[self.sort_column]

        def order(row: Row) -> tuple[bool, Any]:
            value = column.value(row)
            return value is not None, value if value is not None else 0

        rows = sorted(rows, key=order, reverse=self.is_reversed)
        at, shift = table.cursor_row, (table.scroll_x, table.scroll_y)
        needed = widths(rows)
        name, *others = fitting(needed, self.size.width)
        room = [needed[one.head] for one in others]
        keys = [row.key for row in rows]
        lines = [Line(partial(_cells, others, row), room) for row in rows]
        frame = [(row.key, row.label) for row in rows], others, room, column, self.is_reversed
        if frame == self._frame:  # most of the time; to add the rows anew takes a third of the time of a refresh
            for key, line in zip(keys, lines, strict=True):
                table.update_cell(key, _OTHERS, line)
            return
        self._frame = frame
        table.clear(columns=True)
        # The name stays in place only where the table has to scroll, because a fixed column is drawn twice.
        table.fixed_columns = int(sum(room, needed[name.head]) + 2 * (len(room) + 1) > self.size.width)
        heads = Line(lambda: [self._head(one) for one in others], room)
        table.add_column(Text(self._head(name).text), key=name.head)
        table.add_column(heads, width=heads.width, key=_OTHERS)  # type: ignore[arg-type] # any renderable will do
        for row, line in zip(rows, lines, strict=True):
            table.add_row(Text(cell(name, row).text, no_wrap=True, overflow="ellipsis"), line, key=row.key)
        if keys:
            table.move_cursor(row=keys.index(selected) if selected in keys else min(at, len(keys) - 1))
        table.scroll_to(*shift, animate=False)

    def _head(self, column: Column) -> Cell:
        mark = ("▼" if self.is_reversed else "▲") if column is COLUMNS[self.sort_column] else ""
        return Cell(column.head + mark, "", column.is_left)

    def _selected(self) -> str | None:
        table = self._table
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable in the view of one loop the actions that have no effect there."""
        return action not in _TABLE_ACTIONS or len(self.screen_stack) == 1

    async def on_data_table_row_selected(self) -> None:
        """Show the selected loop: Enter, or a click on it."""
        key = self._selected()
        if key is not None and len(self.screen_stack) == 1:
            await self.push_screen(LoopScreen(key, partial(self._sampler.connect, key)))
            await self._refresh()

    async def action_back(self) -> None:
        """Leave the view of a loop."""
        if len(self.screen_stack) > 1:
            self.pop_screen()
            self._show()

    def action_help(self) -> None:
        """Show the keys."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())

    def action_pause(self) -> None:
        """Pause, or resume."""
        self.is_paused = not self.is_paused
        self._show()

    def action_sort_by(self, step: int) -> None:
        """Sort by the next column, or the one before."""
        self.sort_column = (self.sort_column + step) % len(COLUMNS)
        self._show()

    def action_sort_head(self, head: str) -> None:
        """Sort by a column; figures that matter when they are great begin with the greatest."""
        self.sort_column = next(i for i, column in enumerate(COLUMNS) if column.head == head)
        self.is_reversed = head not in ("NAME", "PID")
        self._show()

    def action_turn_round(self) -> None:
        """Reverse the order."""
        self.is_reversed = not self.is_reversed
        self._show()

    def action_slower(self) -> None:
        """Refresh less often."""
        self.interval = next((one for one in _INTERVALS if one > self.interval), _INTERVALS[-1])
        self._restart_timer()
        self._show_status()

    def action_faster(self) -> None:
        """Refresh more often."""
        self.interval = next((one for one in reversed(_INTERVALS) if one < self.interval), _INTERVALS[0])
        self._restart_timer()
        self._show_status()

    async def action_refresh_now(self) -> None:
        """Sample now, also while paused."""
        await self._refresh()

    def action_move(self, step: int) -> None:
        """Go to the next loop, or the one before."""
        table = self._table
        table.move_cursor(row=table.cursor_row + step)
