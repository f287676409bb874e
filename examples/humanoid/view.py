"""Show the robot of a running run.py, whose loop publishes its posture for other processes.

A viewer is an ordinary Python process: it reads the newest posture from shared memory whenever it draws, and can
neither delay the loop nor stop it.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")  # renders without a display; read when MuJoCo is imported

import mujoco
import numpy as np
import robot

import rtloop


class Camera:
    """Renders postures without a display."""

    def __init__(self, model: mujoco.MjModel, width: int = 640, height: int = 480) -> None:
        self.model, self.data = model, mujoco.MjData(model)  # of its own: the loop's belongs to the step
        self.renderer, self.camera = mujoco.Renderer(model, height, width), mujoco.MjvCamera()
        self.camera.distance, self.camera.azimuth, self.camera.elevation = 2.1, 120, -12

    def render(self, state: Any) -> np.ndarray:
        """Return the picture of a posture."""
        place(self.data, state)
        mujoco.mj_forward(self.model, self.data)
        self.camera.lookat[:] = [*state["position"][:2], 0.7]
        self.renderer.update_scene(self.data, self.camera)
        picture: np.ndarray = self.renderer.render()
        return picture


def place(data: mujoco.MjData, state: Any) -> None:
    """Bring the model into the posture of the loop."""
    data.qpos[:3], data.qpos[3:7], data.qpos[7:] = state["position"], state["quaternion"], state["q"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("share", help="name that run.py has printed")
    parser.add_argument("--frames", metavar="FOLDER", help="write pictures into a folder, instead of opening a window")
    parser.add_argument("--count", type=int, default=50, help="number of pictures, ten a second")
    arguments = parser.parse_args()
    model, pose = robot.load().model, rtloop.Latest.open(arguments.share, role="reader")
    if arguments.frames:
        import matplotlib.image

        os.makedirs(arguments.frames, exist_ok=True)
        camera = Camera(model)
        for number in range(arguments.count):
            matplotlib.image.imsave(f"{arguments.frames}/{number:04}.png", camera.render(pose.read()))
            time.sleep(0.1)
        return
    import mujoco.viewer

    data = mujoco.MjData(model)
    with mujoco.viewer.launch_passive(model, data) as window:
        while window.is_running():
            place(data, pose.read())
            mujoco.mj_forward(model, data)
            window.sync()
            time.sleep(1 / 60)


if __name__ == "__main__":
    main()
