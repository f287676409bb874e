"""The same policy in its authors' own Python loop, in place of the compiled one, for comparison.

Their package, holosoma-inference, has dependencies that a loop does not need. `python authors.py --install` installs
them into a virtual environment of their own, which also sees the packages of this one. `run.py --authors` starts this
file in it. The loop and this process exchange posture and targets through shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from pathlib import Path
from typing import Any

VERSION = "0.1.3"
NEEDED = ["wandb", "tyro", "loguru", "pydantic", "sshkeyboard", "onnx", "netifaces", "evdev", "pyzmq", "defusedxml",
          "termcolor", "importlib-metadata", "pyyaml", "pin"]  # fmt: skip
FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rtloop-holosoma"


def install(folder: Path) -> None:
    """Create the environment, once; this takes some minutes."""
    if (folder / "installed").exists():
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet"]
    subprocess.run([*pip, *NEEDED], check=True)
    subprocess.run([*pip, "--no-deps", f"holosoma-inference=={VERSION}"], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")  # rtloop, NumPy, ONNX Runtime
    (folder / "installed").touch()


def control(
    pose_share: str, target_share: str, forward: float, seconds: float, is_busy: bool, priority: int, as_cycles: bool
) -> None:
    """Run the authors' loop; print how often it was on time, or when each cycle began and ended."""
    import numpy as np
    from holosoma_inference.config.config_values import inference
    from holosoma_inference.inputs.api.commands import VelCmd
    from holosoma_inference.policies.locomotion import LocomotionPolicy
    from holosoma_inference.utils.rate import RateLimiter
    from loguru import logger as their_logger

    import rtloop

    their_logger.remove()
    pose = rtloop.Latest.open(pose_share, role="reader")
    target = rtloop.Latest.open(target_share, role="writer")
    read: list[int] = []
    sent: list[int] = []

    class Interface:
        """Replacement of the robot's interface in their loop."""

        def update_config(self, config: Any) -> None:
            pass

        def get_low_state(self) -> np.ndarray:
            read.append(time.monotonic_ns())
            state = pose.read()
            linear = np.zeros(3)  # their observations do not have it
            return np.concatenate(
                [state["position"], state["quaternion"], state["q"], linear, state["gyro"], state["v"]]
            )[None]

        def send_low_command(self, q: np.ndarray, *_: Any, **__: Any) -> None:
            target.write((q,))
            sent.append(time.monotonic_ns())

    class Source:
        """Source from which their loop takes an existing interface."""

        sdk_type, interface, logger, rl_rate = "unitree", Interface(), their_logger, 50
        rate, use_joystick, use_keyboard = RateLimiter(50), False, False

        class _velocity_input:  # noqa: N801
            poll_velocity = staticmethod(lambda: VelCmd((forward, 0.0), 0.0))

        class _command_provider:  # noqa: N801
            poll_commands = staticmethod(list)

    class Policy(LocomotionPolicy):
        _shared_hardware_source = Source()

    import dataclasses

    import robot

    config = inference.g1_29dof_loco
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, model_path=str(robot.policy_file())))
    policy = Policy(config)
    policy.use_policy_action, policy.stand_command[0, 0] = True, 1
    if is_busy:
        threading.Thread(target=spin, daemon=True).start()

    def run() -> None:
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        policy.run()

    threading.Thread(target=run, daemon=True).start()
    while not sent:
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(seconds)
    count = len(sent)
    if as_cycles:
        print(json.dumps(list(zip(read[:count], sent[:count], strict=True))), flush=True)
    else:
        intervals = np.diff(sent[1:count]) * 1e-9
        late = np.count_nonzero(intervals > 0.03)
        print(f"their loop: {1 / intervals.mean():.1f} Hz instead of 50; {late} of {len(intervals)} intervals above "
              f"30 ms, the longest {1000 * intervals.max():.0f} ms", flush=True)  # fmt: skip
    os._exit(0)


def spin() -> None:
    """Keep the interpreter busy."""
    while True:
        sum(range(1000))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start this file in the authors' environment, and wait until it sends targets."""
    process = subprocess.Popen(
        [str(folder / "bin" / "python"), __file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit("the authors' loop has not started")
    return process


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="make the environment")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("shares", nargs="*", help="names of the posture and of the targets; run.py gives them")
    parser.add_argument("--forward", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--busy", action="store_true", help="with a busy thread in the same process")
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO priority of their loop (0: none)")
    parser.add_argument("--cycles", action="store_true", help="print begin and end of each cycle as JSON, ns")
    options = parser.parse_args()
    if options.install:
        install(options.folder)
    elif len(options.shares) == 2:
        control(*options.shares, options.forward, options.seconds, options.busy, options.priority, options.cycles)
    else:
        sys.exit("give --install, or start run.py --authors")
