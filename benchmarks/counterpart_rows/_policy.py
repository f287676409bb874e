"""A policy in ONNX Runtime, computed 50 times a second: company for a loop. Needs onnx and onnxruntime."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import rtloop

LAYERS = (96, 512, 256, 128, 29)  # sizes of a humanoid's walking policy
RATE = "50Hz"


def policy() -> bytes:
    """Return a network of dense layers with fixed pseudo-random weights, as a model of ONNX."""
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(1)
    nodes, weights, before = [], [], "x"
    for number, (inputs, outputs) in enumerate(itertools.pairwise(LAYERS)):
        weight = (random.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype("f4")
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{number}"], [f"m{number}"]))
        before = f"e{number}"
        nodes.append(helper.make_node("Elu", [f"m{number}"], [before]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
            for name, size in (("x", LAYERS[0]), (before, LAYERS[-1]))]  # fmt: skip
    graph = helper.make_graph(nodes, "policy", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


@contextmanager
def running_policy() -> Iterator[list[int]]:
    """Run the policy in a PyLoop, below the priority of the loop under test; yields the number of its runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(policy(), options, providers=["CPUExecutionProvider"])
    observation = {"x": np.zeros((1, LAYERS[0]), "f4")}
    count = [0]

    def infer(cycle: Any) -> None:
        session.run(None, observation)
        count[0] += 1

    with rtloop.PyLoop(infer, RATE, priority=50, lock_memory="off", name="policy"):
        yield count
