"""What a measurement says of the clock's own cost and of a call's."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt import backends
from edgeopt.measuring.candidate import overhead

RUNTIMES = {
    "onnxruntime": {},
    "openvino": {"precision": "f32"},
    "tflite": {},
    "torch": {"mode": "eager", "device": "cpu"},
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_smallest_model_is_a_relu_of_four_floats(name):
    session = backends.find(name).smallest(RUNTIMES[name], 1)
    call = session.bind({session.inputs[0].name: np.array([-1, 2, -3, 4], np.float32)})
    call()
    assert [value.tolist() for value in call.outputs().values()] == [[0, 2, 0, 4]]


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_call_costs_more_than_the_clock_and_far_less_than_a_small_network(name):
    clock_ns, call_ns = overhead(backends.find(name), RUNTIMES[name], 1)
    assert 0 < clock_ns < call_ns < 50_000


def test_a_backend_without_such_a_model_says_what_the_clock_costs_alone():
    class Backend:
        pass

    clock_ns, call_ns = overhead(Backend(), {}, 1)
    assert clock_ns > 0
    assert call_ns is None


def test_a_compiled_program_of_torch_has_no_such_model():
    assert backends.find("torch").smallest({"mode": "aot", "device": "cpu"}, 1) is None
