"""The page of ``rtloop scope`` in headless Chromium: as a user sees and works it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from rtloop_test_scope_page import LIMIT_S, Program, running_program

pytest.importorskip("bokeh", reason="the page of rtloop scope needs Bokeh and Tornado: pip install 'rtloop[scope]'")
driver = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Without a GPU, and as root, too.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with driver.sync_playwright() as made:
        found = made.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def loop(scoped: ModuleType, ordinary: dict[str, Any]) -> Iterator[Any]:
    made = scoped.Scoped("1kHz", name=f"seen-{os.getpid()}", **ordinary)
    with made:
        yield made


@pytest.fixture
def program(loop: Any, tmp_path: Path) -> Iterator[Program]:
    with running_program(tmp_path, loop.name) as running:
        yield running


@pytest.fixture
def opened(browser: Any, program: Program) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end there must have been no error in it, and no request to anywhere else."""
    contexts, errors, asked = [], [], set()

    def open_page(width: int = 1000, height: int = 640, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LIMIT_S * 1000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("request", lambda request: asked.add(request.url.split("/")[2] if "//" in request.url else "data"))
        page.goto(program.address)
        until(lambda: frames(page) > 2, "nothing was drawn")
        return page

    yield open_page
    for context in contexts:
        context.close()
    # A page whose server has ended tries to connect again.
    errors = [error for error in errors if "ERR_CONNECTION_REFUSED" not in error]
    assert not errors, errors
    assert asked <= {program.host, "data"}, asked


def until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def number(page: Any, name: str) -> float:
    """Return a figure that the page tells of its drawing. Its policy forbids `page.wait_for_function`."""
    return float(page.evaluate(f"document.documentElement.dataset.{name} ?? 0"))


def frames(page: Any) -> float:
    return number(page, "frames")


def test_sixteen_signals_move(loop: Any, opened: Callable[..., Any]) -> None:
    page = opened()
    assert loop.name in page.locator("#loop option:checked").inner_text()
    assert page.locator("#channels .channel").count() == 19 and page.locator("#empty").is_hidden()
    newest = number(page, "newest")
    until(lambda: number(page, "newest") > newest + 1, "the signals do not move")

    tick = "document.querySelectorAll('#channels input').forEach((box, i) => i < 16 && !box.checked && box.click())"
    page.evaluate(tick)
    assert page.locator("#channels input:checked").count() == 16
    drawn = frames(page)
    until(lambda: frames(page) > drawn + 10, "sixteen signals are not drawn")


#: Extent of the pixels of a colour in a picture, as shares of its size.
EXTENT = """async ([source, colour]) => {
  const image = new Image();
  image.src = source;
  await image.decode();
  const { width, height } = image;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  let [left, right, top, bottom] = [width, 0, height, 0];
  for (let place = 0; place < data.length; place += 4) {
    if (colour.some((value, index) => Math.abs(data[place + index] - value) > 60)) continue;
    const [x, y] = [place / 4 % width, Math.floor(place / 4 / width)];
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  }
  return [(right - left) / width, (bottom - top) / height];
}"""
BLUE, ORANGE = (0x1F, 0x6F, 0xC4), (0xD1, 0x51, 0x0E)


def extent(page: Any, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Return the width and the height of what the user sees in this colour, as shares of the plots' size."""
    picture = base64.b64encode(page.locator("#plots").screenshot()).decode()
    across, down = page.evaluate(EXTENT, [f"data:image/png;base64,{picture}", colour])
    return across, down


def test_curves_fill_their_pane(
    loop: Any, scoped: ModuleType, ordinary: dict[str, Any], opened: Callable[..., Any]
) -> None:
    """A sine wave spans the time axis and the height; a spike of one cycle among 10,000 is seen, and a swap."""
    page = opened()

    def fills(colour: tuple[int, int, int]) -> bool:
        across, down = extent(page, colour)
        return across > 0.8 and down > 0.6

    show_one(page, "Signals")
    page.locator("#window").select_option("0.5")
    until(lambda: fills(BLUE), "the wave is not seen")
    page.set_viewport_size({"width": 1200, "height": 640})
    until(lambda: fills(BLUE), "the curves do not follow the size of the window")

    page.locator("#channel-wave").uncheck()
    page.locator("#channel-spike").check()
    page.locator("#window").select_option("10")
    until(lambda: 0 <= extent(page, ORANGE)[1] < 0.05, "a signal that is 0 is not a level line")
    loop.parameters["fire"] = 1
    until(lambda: extent(page, ORANGE)[1] > 0.6, "the spike is not seen")

    page.locator("#window").select_option("60")
    cycle = loop.swap(scoped.Scoped("1kHz", **ordinary))
    until(lambda: number(page, "marks") == 1, "the swap is not marked")
    page.get_by_role("tab", name="Loop").click()
    page.get_by_text(f"1, Scoped since cycle {cycle:,}").wait_for()


def show_one(page: Any, panel: str) -> None:
    """Show one signal only, so that a slow machine has time for the rest, and a panel."""
    page.locator("#none").click()
    page.locator("#channel-wave").check()
    page.get_by_role("tab", name=panel).click()


def test_a_slider_and_a_field_change_the_loop(loop: Any, opened: Callable[..., Any]) -> None:
    """And a refusal is shown beside its parameter."""
    page = opened()
    show_one(page, "Parameters")
    slider = page.get_by_label("gain, 0 to 50")
    slider.fill("20")
    until(lambda: loop.parameters["gain"] == 20, "the slider did not change the loop")
    field = page.locator("#parameter-gain")
    field.fill("60")
    field.press("Enter")
    page.get_by_text("gain=60.0 is outside of its limits, 0.0 to 50.0 V/rad").wait_for()
    assert loop.parameters["gain"] == 20
    page.locator("#discard").click()
    assert field.input_value() == "20"
    page.locator("#undo").click()
    until(lambda: loop.parameters["gain"] == 1, "it was not undone")


def test_parameters_are_sent_together(loop: Any, opened: Callable[..., Any]) -> None:
    page = opened()
    show_one(page, "Parameters")
    page.locator("#at-once").uncheck()
    for name, value in (("gain", "5"), ("offset", "2"), ("mode", "3")):
        page.locator(f"#parameter-{name}").fill(value)
        page.locator(f"#parameter-{name}").blur()
    assert loop.parameters["gain"] == 1
    page.get_by_role("button", name="Send 3 changes together").click()
    until(lambda: dict(loop.parameters, fire=0) == {"gain": 5, "offset": 2, "mode": 3, "fire": 0}, "they were not sent")
    page.locator("#preset-name").fill("three")
    page.locator("#preset-save").click()
    page.locator("#preset option", has_text="three").wait_for(state="attached")
    loop.parameters.update(gain=1, offset=0)
    until(lambda: page.locator("#parameter-gain").input_value() == "1", "a change by another program is not shown")
    page.locator("#preset-load").click()
    page.locator("#send").click()
    until(lambda: loop.parameters["gain"] == 5 and loop.parameters["offset"] == 2, "the preset was not sent")


def test_the_trigger_catches_a_spike(loop: Any, program: Program, opened: Callable[..., Any]) -> None:
    """Of one cycle, of a signal that is not drawn."""
    page = opened()
    show_one(page, "Trigger")
    page.locator("#trigger-channel").select_option("spike")
    page.locator("#trigger-level").fill("0.5")
    page.locator("#arm").click()
    page.get_by_text("Armed; waits for the edge.").wait_for()
    loop.parameters["fire"] = 1
    page.get_by_text("Done: one capture.").wait_for()
    assert page.locator("#captured").get_attribute("aria-pressed") == "true"
    page.locator("#save-npz").click()
    until(lambda: list(program.folder.glob("*-capture-*.npz")), "the capture was not saved")
    (path,) = program.folder.glob("*-capture-*.npz")
    with np.load(path) as file:
        assert len(file["records"]) == 500
        assert np.flatnonzero(file["records"]["spike"]).tolist() == [100]


def test_keys_cursors_and_views(loop: Any, opened: Callable[..., Any]) -> None:
    page = opened()
    page.locator("h1").click()
    page.keyboard.press(" ")
    assert page.locator("#pause").inner_text() == "Go on"
    drawn = frames(page)
    box = page.locator("#plots").bounding_box()

    def note() -> str:
        text: str = page.locator("#cursornote").inner_text()
        return text

    page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.2 * box["height"])
    until(lambda: note().startswith("A: "), "cursor A was not set")
    page.keyboard.down("Shift")
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 0.2 * box["height"])
    page.keyboard.up("Shift")
    until(lambda: " B − A: " in note(), "cursor B was not set")
    wave = page.locator("[data-channel=wave] .number")
    assert all(abs(float(text)) <= 1 for text in wave.all_inner_texts()[:2])

    def cycle() -> int:
        return int(note().partition("cycle ")[2].partition(".")[0])

    before = cycle()
    page.keyboard.press("ArrowRight")
    until(lambda: cycle() != before, "the cursor did not move")
    assert cycle() > before
    page.keyboard.press(" ")
    until(lambda: frames(page) > drawn + 5, "it does not go on")
    for mode in ("xy", "histogram", "time"):
        drawn = frames(page)
        page.locator("#mode").select_option(mode)
        until(lambda: frames(page) > drawn + 3, mode)  # noqa: B023 - called here only
    page.locator("h1").click()
    page.keyboard.press("4")
    page.get_by_text("overruns", exact=True).wait_for()
    page.keyboard.press("?")
    page.get_by_role("heading", name="Keys").wait_for()
    page.keyboard.press("Escape")


def test_a_phone_in_the_dark(opened: Callable[..., Any]) -> None:
    page = opened(390, 844, color_scheme="dark", has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    for panel in ("Parameters", "Trigger", "Loop", "Signals"):
        page.get_by_role("tab", name=panel).tap()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, panel
    page.locator("#theme").tap()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_loop_that_does_not_run_yet(
    scoped: ModuleType, ordinary: dict[str, Any], browser: Any, tmp_path: Path
) -> None:
    made = scoped.Scoped("1kHz", name=f"later-{os.getpid()}", **ordinary)
    with running_program(tmp_path, made.name) as program:
        page = browser.new_page()
        page.set_default_timeout(LIMIT_S * 1000)
        page.goto(program.address)
        page.get_by_text(f"{made.name} is not running yet.").or_(page.get_by_text("No loop is running")).wait_for()
        with made:
            until(lambda: frames(page) > 2, "it did not appear")
            assert page.locator("#empty").is_hidden()
        page.get_by_text("has ended; waits for its next run").wait_for()
        with made:
            page.get_by_text("running at 1 kHz").wait_for()
            drawn = frames(page)
            until(lambda: frames(page) > drawn + 2, "the next run is not shown")
        page.close()


def test_a_loop_of_another_host(loop: Any, browser: Any, tmp_path: Path) -> None:
    """Over a bridge: its signals and its latency are drawn, and a slider changes it."""
    zenoh = pytest.importorskip("rtloop.zenoh", reason="Zenoh is missing: pip install 'rtloop[zenoh]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        at = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
    alone = {"scouting": {"multicast": {"enabled": False}, "gossip": {"enabled": False}}}
    config = tmp_path / "zenoh.json5"
    config.write_text(json.dumps({**alone, "mode": "client", "connect": {"endpoints": [at]}}))
    here = {**alone, "mode": "router", "listen": {"endpoints": [at]}}
    with (
        zenoh.Bridge(loop, config=here, key="rtloop/pi/scoped", commands=("set",), interval="50ms"),
        running_program(tmp_path, "--zenoh", "rtloop/**", "--config", str(config)) as program,
    ):
        page = browser.new_page()
        page.set_default_timeout(LIMIT_S * 1000)
        page.goto(program.address)
        page.locator("[id='channel-loop.latency.p99']").wait_for()
        show_one(page, "Parameters")
        newest = number(page, "newest")
        until(lambda: number(page, "newest") > newest + 0.1, "its signals do not move")
        page.get_by_label("gain, 0 to 50").fill("20")
        until(lambda: loop.parameters["gain"] == 20, "the slider did not change the loop")
        page.get_by_role("tab", name="Signals").click()
        page.locator("#channel-wave").uncheck()
        page.locator("[id='channel-loop.latency.p99']").check()
        page.locator("#window").select_option("1")
        until(lambda: extent(page, ORANGE)[0] > 0.2, "its latency is not drawn")
        page.close()


def test_the_program_ends_and_its_page_says_so(program: Program, opened: Callable[..., Any]) -> None:
    page = opened()
    other = opened()
    other.close()
    code, printed = program.end()
    assert code == 0 and "Traceback" not in printed
    page.get_by_text("not connected", exact=True).wait_for()
