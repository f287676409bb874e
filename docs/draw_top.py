"""Draw the screen of rtloop top while it shows examples/pid_motor: docs/images/top.svg.

    python docs/draw_top.py

Needs the extra rtloop[top].
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from pathlib import Path

import rtloop
from rtloop.tools.top.app import TopApp
from rtloop.tools.top.sampler import Sampler

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "top.svg"
#: Fonts that the style sheet of the picture would load from a server. Without them a browser uses its own.
FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def turn(loop: rtloop.RTLoop, ended: threading.Event) -> None:
    """Move the setpoint to the other end every second."""
    while not ended.wait(1.0):
        loop.parameters["setpoint"] = 1.0 - loop.parameters["setpoint"]


async def draw() -> str:
    """Open the view of the loop, begin to change two parameters, and return the screen as SVG."""
    app = TopApp(Sampler(os.getpid()), 0.5)
    async with app.run_test(size=(118, 46)) as pilot:
        await pilot.pause(1.0)
        await pilot.press("enter")
        await pilot.pause(6.0)
        await pilot.press("down", "enter", *"12", "down", *"0.2")
        await pilot.pause(1.0)
        return app.export_screenshot(title="rtloop top")


def main() -> None:
    """Write the picture."""
    motor = rtloop.build(ROOT / "examples" / "pid_motor" / "pid_motor.pyx")
    loop = motor.Motor("1kHz", name="motor", strict=False)
    ended = threading.Event()
    with loop:
        loop.parameters.update(kp=10, kd=0.1)
        turning = threading.Thread(target=turn, args=(loop, ended))
        turning.start()
        try:
            IMAGE.write_text(FONT.sub("", asyncio.run(draw())))
        finally:
            ended.set()
            turning.join()


if __name__ == "__main__":
    main()
