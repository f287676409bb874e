"""Count the frames a second of rtloop scope with sixteen signals at 1 kHz, with BokehJS alone beside it.

    python benchmarks/scope.py [--pairs 3] [--seconds 5] [--width 1400] [--json FILE]

The page of rtloop scope runs in headless Chromium, without a GPU, and shows the last 10 s of a running loop: each
frame is 16 lines of up to two points for a pixel column. The peer is one figure of BokehJS in the same browser, with
16 lines of as many points that are in the browser already; it is drawn again as soon as the browser has shown it.

Frames a second depend on what else the machine does. The CPU time for a frame depends on it less; it is that of all
processes of the browser, and that of the server of rtloop scope. A long task is one that holds up the page for more
than 50 ms; "blocked" is the share of the time that they took.

Needs the extra rtloop[scope], playwright, Chromium, Cython and a C compiler (for rtloop.build).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import alternate, facts, need_module, parser, print_table, run_script

import rtloop

WAVES = Path(__file__).with_suffix(".pyx")
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
HEIGHT, LINES, WINDOW_S = 900, 16, 10
COLUMNS = ("frames/s", "browser, ms/frame", "server, ms/frame", "long tasks/s", "blocked, %")
#: Selects the signals, and no others; each setting of the page is a click of the user.
CHOOSE = """document.querySelectorAll("#channels input").forEach((box, number) => {
  if (box.checked !== number < 16) box.click();
})"""
#: Draws the peer's figure until the page is closed, and counts its frames as the page of rtloop scope does.
PEER = """([lines, points]) => {
  const place = document.getElementById("plots");
  const figure = Bokeh.Plotting.figure({ width: place.clientWidth, height: place.clientHeight, tools: [],
    toolbar_location: null, x_range: new Bokeh.Range1d({ start: 0, end: 1 }), output_backend: "canvas" });
  const sources = Array.from({ length: lines }, () => new Bokeh.ColumnDataSource({ data: { x: [], y: [] } }));
  for (const source of sources) figure.line({ field: "x" }, { field: "y" }, { source });
  Bokeh.Plotting.show(figure, place);
  let count = 0;
  function draw() {
    const now = performance.now() / 1000;
    const x = Float64Array.from({ length: points }, (_, index) => now - 10 + 10 * index / points);
    sources.forEach((source, row) => (source.data = { x, y: x.map((t) => row + 0.4 * Math.sin((row + 1) * t)) }));
    figure.x_range.setv({ start: now - 10, end: now });
    document.documentElement.dataset.frames = count++;
    requestAnimationFrame(() => setTimeout(draw));
  }
  draw();
}"""
WATCH = """() => {
  window.tasks = [];
  new PerformanceObserver((list) => list.getEntries().forEach((one) => window.tasks.push(one.duration)))
    .observe({ type: "longtask" });
}"""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of all that it has started, in s."""
    children: dict[int, list[int]] = {}
    times: dict[int, int] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        children.setdefault(int(fields[1]), []).append(int(name))
        times[int(name)] = int(fields[11]) + int(fields[12])
    found, ticks = [pid], 0
    for one in found:
        ticks += times.get(one, 0)
        found += children.get(one, [])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(name: str, folder: str) -> Iterator[tuple[int, str]]:
    """Run rtloop scope, and yield its process and its address."""
    command = [sys.executable, "-P", "-m", "rtloop", "scope", name, "--folder", folder]
    process = subprocess.Popen([*command, "--presets", f"{folder}/presets.json"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        yield process.pid, process.stderr.readline().split()[1]
    finally:
        process.terminate()
        process.wait()


def browser_pid() -> int:
    """Return the driver of playwright, which starts the browser: the only child with such a name."""
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            program = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and b"playwright" in program:
            return int(name)
    raise RuntimeError("the driver of playwright was not found")


def measure(page: Any, server_pid: int, seconds: float) -> list[float]:
    """Return a row of figures of a page that draws."""

    def frames() -> int:
        return int(page.evaluate("document.documentElement.dataset.frames"))

    page.evaluate(WATCH)
    driver = browser_pid()
    begun, first = time.monotonic(), frames()
    before = cpu_seconds(driver), cpu_seconds(server_pid)
    page.wait_for_timeout(seconds * 1000)
    count = max(1, frames() - first)
    browser, served = cpu_seconds(driver) - before[0], cpu_seconds(server_pid) - before[1]
    took = time.monotonic() - begun
    tasks = page.evaluate("window.tasks")
    return [count / took, 1e3 * browser / count, 1e3 * served / count, len(tasks) / took, sum(tasks) / took / 10]


def show_scope(page: Any, address: str) -> None:
    """Show sixteen signals of the last 10 s."""
    page.goto(address)
    page.locator("#channels .channel").first.wait_for()
    page.evaluate(CHOOSE)
    page.locator("#window").select_option(str(WINDOW_S))
    page.wait_for_timeout(WINDOW_S * 1000)


def show_peer(page: Any, address: str) -> None:
    """Draw as many points with BokehJS alone; the server only sends its files."""
    page.goto(address.partition("&")[0] + "&loop=none")
    page.locator("#empty").wait_for()
    width = page.evaluate("document.getElementById('plots').clientWidth")
    page.evaluate(PEER, [LINES, min(2 * width, WINDOW_S * 1000)])
    page.wait_for_timeout(2000)


def main() -> int:
    """Measure both in turn, and print the table."""
    options = parser(__doc__, pairs=3, seconds=5.0)
    options.add_argument("--width", type=int, default=1400, metavar="PIXELS", help="width of the window (1400)")
    chosen = options.parse_args()
    driver = need_module("playwright.sync_api", "playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is missing; fix: sudo apt install chromium")
    loop: Any = rtloop.build(WAVES).Waves("1kHz", name=f"waves-{os.getpid()}", strict=False)
    with (
        tempfile.TemporaryDirectory() as folder, loop, server(loop.name, folder) as (pid, address),
        driver.sync_playwright() as made,
    ):  # fmt: skip
        browser = made.chromium.launch(executable_path=chromium, args=FLAGS)

        def side(show: Callable[[Any, str], None]) -> list[float]:
            page = browser.new_page(viewport={"width": chosen.width, "height": HEIGHT})
            show(page, address)
            row = measure(page, pid, chosen.seconds)
            page.close()
            return row

        sides = {"rtloop scope": lambda: side(show_scope), "BokehJS alone": lambda: side(show_peer)}
        rows = alternate(sides, chosen.pairs)
        found = {name: [statistics.median(one) for one in zip(*row, strict=True)] for name, row in rows.items()}
        browser.close()
    to_stdout = chosen.json == "-"
    print_table(
        f"{LINES} signals at 1 kHz, {WINDOW_S} s, {chosen.width} by {HEIGHT} pixels; load {os.getloadavg()[0]:.1f}",
        ["page", *COLUMNS],
        [[name, *(f"{value:.1f}" for value in row)] for name, row in found.items()],
        file=sys.stderr if to_stdout else None,
    )
    if chosen.json:
        named = {name: dict(zip(COLUMNS, row, strict=True)) for name, row in found.items()}
        text = json.dumps({"pages": named, "machine": facts()}, indent=1, default=str)
        print(text, file=sys.__stdout__) if to_stdout else Path(chosen.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    run_script(main)
