"""The robot and its policy, both from the package holosoma-inference: nothing of either is in this folder.

The wheel has policies for Unitree's G1 with 29 joints, as ONNX files. Their metadata have the gains of the joints, and
those of one of them the robot's description (URDF), which MuJoCo reads.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import mujoco
import numpy as np
import onnxruntime

import rtloop

ACTION_SCALE = 0.25  # rad, as the package's configuration of this task has it
#: Angles to which the actions are added: hips, knees, ankles of both legs, waist, arms.
LEG = (-0.312, 0.0, 0.0, 0.669, -0.363, 0.0)
DEFAULT = np.array([*LEG, *LEG, *[0.0] * 3, 0.2, 0.2, 0.0, 0.6, 0.0, 0.0, 0.0, 0.2, -0.2, 0.0, 0.6, 0.0, 0.0, 0.0])
SCENE = """
<mujoco>
  <compiler fusestatic="false" discardvisual="true" strippath="true"/>
</mujoco>
"""


class Humanoid(NamedTuple):
    """Data of the robot that the loops need."""

    model: mujoco.MjModel
    policy: Path
    names: list[str]
    kp: np.ndarray
    kd: np.ndarray
    limit: np.ndarray  # Nm


def package() -> Path:
    """Return the folder of holosoma-inference, without importing it."""
    spec = importlib.util.find_spec("holosoma_inference")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the policies are missing: pip install --no-deps holosoma-inference==0.1.3")
    return Path(next(iter(spec.submodule_search_locations)))


def runtime() -> Path:
    """Return the library of ONNX Runtime."""
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))


def metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that the authors have written into an ONNX file."""
    found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in found.items() if value.startswith(("[", "{", '"'))}


def policy_file(policy: str = "fastsac") -> Path:
    """Return the file of a policy that walks."""
    return package() / "models" / "loco" / "g1_29dof" / f"{policy}_g1_29dof.onnx"


def load(policy: str = "fastsac") -> Humanoid:
    """Return the robot on a plane, and the policy that makes it walk; "ppo" is another."""
    path = policy_file(policy)
    known = metadata(path)
    kp, kd = np.array(known["kp"]), np.array(known["kd"])
    urdf = metadata(package() / "models" / "wbt" / "ppo_g1_29dof_dancing.onnx")["robot_urdf"]
    urdf = re.sub(r"<visual>.*?</visual>", "", urdf, flags=re.DOTALL)  # the meshes are not in the wheel
    joints = [joint for joint in ElementTree.fromstring(urdf).iter("joint") if joint.find("limit") is not None]
    limits = {joint.get("name"): float(joint.find("limit").get("effort")) for joint in joints}
    spec = mujoco.MjSpec.from_string(urdf.replace("</robot>", SCENE + "</robot>"))
    spec.option.timestep = 0.001
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[50, 50, 0.1], rgba=[0.85, 0.85, 0.85, 1])
    spec.worldbody.add_light(pos=[0, 0, 5], dir=[0.2, 0.2, -1], type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    pelvis = spec.body("pelvis")
    pelvis.add_freejoint()
    for name, gain in zip(known["dof_names"], kp, strict=True):
        joint = spec.joint(name)
        joint.armature = gain / (2 * np.pi * 10) ** 2  # the authors' gains are those of an oscillator of 10 Hz
        spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT,
                          ctrllimited=True, ctrlrange=[-limits[name], limits[name]])  # fmt: skip
    for geom in spec.geoms:
        geom.rgba = [0.85, 0.85, 0.85, 1] if geom.type == mujoco.mjtGeom.mjGEOM_PLANE else [0.3, 0.45, 0.65, 1]
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 720
    model = spec.compile()
    order = [model.joint(name).qposadr[0] - 7 for name in known["dof_names"]]
    if order != list(range(len(order))) or model.nq != 7 + len(order):
        raise SystemExit("the joints of the model are not in the order of the policy")
    return Humanoid(model, path, known["dof_names"], kp, kd, np.array([limits[name] for name in known["dof_names"]]))


def standing(robot: Humanoid) -> mujoco.MjData:
    """Return the robot in the policy's default posture, its feet on the ground."""
    data = mujoco.MjData(robot.model)
    data.qpos[:7], data.qpos[7:] = [0, 0, 1, 1, 0, 0, 0], DEFAULT
    mujoco.mj_forward(robot.model, data)
    feet = [i for i in range(robot.model.ngeom) if "ankle_roll" in robot.model.body(robot.model.geom_bodyid[i]).name]
    data.qpos[2] -= min(data.geom_xpos[i][2] - robot.model.geom_size[i][0] for i in feet) - 0.001
    mujoco.mj_forward(robot.model, data)
    return data


@contextmanager
def may_fall(body: rtloop.RTLoop) -> Iterator[None]:
    """Run a block around a group in which a fall of the robot is a result, not an error.

    The fall ends the loop of the robot, which the group raises when it is left, also with ``on_failure="keep"``.
    """
    try:
        yield
    except rtloop.CallbackError as error:
        if (error.name, error.symbol) != (body.name, "ECANCELED"):
            raise
