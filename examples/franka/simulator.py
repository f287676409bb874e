"""Install franka-sim in a virtual environment of its own, and start its server: an independent simulator.

franka-sim (PyPI) speaks FCI, counts answers and stops the arm with a reflex as the robot does. It needs an old NumPy
and MuJoCo, so it gets its own environment. The model is made from the URDF in its wheel, without meshes, so that
nothing else is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "1.1.7"
MODEL = r"""
import re, sys
from pathlib import Path
import franka_sim, mujoco

urdf = (Path(franka_sim.__file__).parent / "models" / "fr3.urdf").read_text()
for part in (r"<!--.*?-->", r"<visual.*?</visual>", r"<collision.*?</collision>",
             r'<link name="link\d_accelerometer_\w+">\s*</link>',
             r'<joint name="link\d_accelerometer_\w+_joint".*?</joint>'):
    urdf = re.sub(part, "", urdf, flags=re.S)
options = '<compiler fusestatic="false" discardvisual="true" strippath="true" balanceinertia="true"/>'
spec = mujoco.MjSpec.from_string(urdf.replace("</robot>", f"<mujoco>{options}</mujoco></robot>"))
for joint in spec.joints:
    joint.armature, joint.damping = 0.1, 1.0
spec.compile()
Path(sys.argv[1]).write_text(spec.to_xml())
"""


def install(folder: Path) -> None:
    """Make the environment and the model, once."""
    if not (folder / "bin" / "run-franka-sim-server").exists():
        has_pip = importlib.util.find_spec("pip") is not None  # it takes seconds to install another
        venv.create(folder, with_pip=not has_pip, clear=True)
        python = folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
        # Without a wheel of NumPy 1.26 for this Python, pip would compile it.
        subprocess.run([*pip, "install", "--quiet", "--only-binary", ":all:", f"franka-sim=={VERSION}"], check=True)
    if not (folder / "fr3.xml").exists():
        subprocess.run([folder / "bin" / "python", "-c", MODEL, folder / "fr3.xml"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rtloop-franka-sim"
    parser.add_argument("--folder", type=Path, default=default, help="folder of the virtual environment")
    parser.add_argument("--install", action="store_true", help="install it without starting it")
    parser.add_argument("--priority", type=int, default=60, help="real-time priority, below the loop's; 0: none")
    parser.add_argument("--port", type=int, default=1337, help="TCP port; libfranka's clients know only 1337")
    parser.add_argument("--limits", action="store_true", help="also enforce limits of motion")
    options = parser.parse_args()
    install(options.folder)
    if options.install:
        return
    if options.priority:
        # Without a real-time priority the server publishes 130 to 930 states a second on a busy machine.
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(options.priority))
        except PermissionError:
            print("no permission for a real-time priority: the server runs without", file=sys.stderr)
    environment = {**os.environ, "FR3_MJCF": str(options.folder / "fr3.xml")}
    server = options.folder / "bin" / "run-franka-sim-server"
    more = ["--enforce-motion-limits"] if options.limits else []
    more += ["--port", str(options.port)]
    os.execve(server, [str(server), "--no-gripper", "--enforce-comm-constraints", *more], environment)


if __name__ == "__main__":
    main()
