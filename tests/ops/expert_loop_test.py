"""The loop over experts beside the grouped product and NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers.experts import Experts
from keras_switch.ops.expert_loop import can_loop, loop_over_experts
from tests import bits, bridge

SIZES = [(3, 0, 5, 1), (0, 0, 0, 0), (9, 0, 0, 0), (20, 1, 30, 4)]


def compiled(function):
    """As a user's `fit` compiles it without XLA."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_numpy(sizes, graph, rng):
    if keras.backend.backend() == "jax":
        pytest.skip("XLA compiles for sizes that it knows")
    if graph and keras.backend.backend() == "torch":
        pytest.skip("torch has no graph here")
    rows = rng.normal(size=(sum(sizes) + 2, 6)).astype("float32")
    wi = rng.normal(size=(4, 6, 8)).astype("float32")
    wo = rng.normal(size=(4, 8, 6)).astype("float32")

    def call(rows, sizes):
        assert can_loop(rows, 4)
        return loop_over_experts(
            lambda x, wi, wo: ops.relu(x @ wi) @ wo,
            rows,
            sizes,
            [ops.convert_to_tensor(wi), ops.convert_to_tensor(wo)],
        )

    got = (compiled(call) if graph else call)(
        ops.convert_to_tensor(rows), ops.convert_to_tensor(sizes, "int32")
    )
    owner = np.repeat(np.arange(4), sizes)
    wanted = np.zeros_like(rows)
    for i, expert in enumerate(owner):
        wanted[i] = np.maximum(rows[i] @ wi[expert], 0) @ wo[expert]
    np.testing.assert_allclose(bridge.numpy(got), wanted, rtol=1e-5, atol=1e-5)


def test_only_where_sizes_may_be_unknown():
    rows = ops.ones((4, 6))
    assert can_loop(rows, 4) == (keras.backend.backend() != "jax")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        seen = []
        for xla, experts in [(False, 4), (True, 4), (False, 1000)]:
            call = tf.function(
                lambda x, e=experts: (seen.append(can_loop(x, e)), x)[1],
                jit_compile=xla,
            )
            call(rows)
        assert seen == [True, False, False]


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_gradients_in_evaluation_are_those_of_training(
    activation, rng, gradients
):
    experts = Experts(3, 8, activation=activation)
    experts.build((1, 3, 4, 6))
    sizes = ops.convert_to_tensor([2, 0, 3], "int32")
    rows = rng.normal(size=(5, 6)).astype("float32")
    (value, (dx,), dkernels), (_, (wanted_dx,), wanted) = (
        gradients(
            lambda x, training=training: ops.sum(
                experts(x, sizes=sizes, training=training) ** 2
            ),
            [rows],
            experts.trainable_variables,
        )
        for training in (False, True)
    )
    assert value > 0 and len(dkernels) == len(wanted) >= 2
    for got, other in zip([dx, *dkernels], [wanted_dx, *wanted], strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(got, other, rtol=1e-4, atol=1e-8)


def test_a_row_in_a_graph_has_the_bits_it_has_alone(rng):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("a graph is TensorFlow's; elsewhere the layer's tests do")
    import tensorflow as tf

    experts = Experts(3, 96)
    experts.build((1, 3, 4, 48))
    call = tf.function(
        lambda rows, sizes: experts(rows, sizes=sizes, training=False)
    )
    rows = rng.normal(size=(60, 48)).astype("float32")
    whole = call(rows, ops.convert_to_tensor([20, 5, 35], "int32")).numpy()
    for row, expert in [(0, 0), (19, 0), (22, 1), (25, 2), (59, 2)]:
        sizes = np.eye(3, dtype="int32")[expert]
        alone = call(rows[row : row + 1], ops.convert_to_tensor(sizes)).numpy()
        bits.assert_same(alone[0], whole[row])


def test_second_derivative_in_evaluation(rng):
    if keras.backend.backend() != "torch":
        pytest.skip("TensorFlow's tape takes its own")
    import torch

    experts = Experts(2, 8, activation="gelu")
    experts.build((1, 2, 4, 6))
    sizes = ops.convert_to_tensor([2, 3], "int32")
    values = []
    for training in (False, True):
        rows = torch.ones((5, 6), requires_grad=True)
        y = experts(rows, sizes=sizes, training=training)
        (first,) = torch.autograd.grad(y.sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), rows)
        values.append(bridge.numpy(second))
    assert np.abs(values[1]).max() > 0
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-9)
