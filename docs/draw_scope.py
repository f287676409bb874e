"""Draw the page of rtloop scope while it watches examples/pid_motor: docs/images/scope.png.

    python docs/draw_scope.py

Needs the extra rtloop[scope], playwright and Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import rtloop

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "scope.png"


def turn(loop: rtloop.RTLoop, ended: threading.Event) -> None:
    """Move the setpoint to the other end twice a second."""
    while not ended.wait(0.5):
        loop.parameters["setpoint"] = 1.0 - loop.parameters["setpoint"]


def photograph(address: str) -> None:
    """Open the page, choose signals, arm the trigger, and take a picture."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="light")
        page.goto(address)
        page.locator("[id='channel-loop.latency']").check()
        page.locator("[id='channel-loop.execution']").uncheck()
        page.locator("#window").select_option("5")
        page.get_by_role("tab", name="Parameters").click()
        page.locator("#parameter-kd").wait_for()
        page.wait_for_timeout(6000)
        page.locator("h1").click()
        page.screenshot(path=IMAGE)
        browser.close()


def main() -> None:
    """Write the picture."""
    motor = rtloop.build(ROOT / "examples" / "pid_motor" / "pid_motor.pyx")
    loop = motor.Motor("1kHz", name="motor", strict=False)
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder, loop:
        loop.parameters.update(kp=10, kd=0.1)
        turning = threading.Thread(target=turn, args=(loop, ended))
        turning.start()
        command = [sys.executable, "-P", "-m", "rtloop", "scope", "motor", "--folder", folder]
        scope = subprocess.Popen([*command, "--presets", f"{folder}/p.json"], stderr=subprocess.PIPE, text=True)
        try:
            assert scope.stderr is not None
            photograph(scope.stderr.readline().split()[1])
        finally:
            scope.terminate()
            scope.wait()
            ended.set()
            turning.join()


if __name__ == "__main__":
    main()
