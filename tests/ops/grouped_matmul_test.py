"""Every form of the grouped product against a NumPy loop."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import grouped_matmul as module
from keras_switch.ops.compiled import compiled
from tests import bridge

D, F = 5, 3
# [E] rows of each expert, and rows in all; the rest belongs to no expert.
CASES = {
    "balanced": ([3, 3, 3, 3], 12),
    "uneven": ([5, 0, 1, 6], 12),
    "collapsed": ([0, 12, 0, 0], 12),
    "several blocks": ([130, 0, 70, 1], 201),
    "one of many": ([100] + [0] * 14 + [10], 110),
    "spare rows": ([2, 1, 0, 4], 12),
    "nothing but spare rows": ([0, 0, 0, 0], 6),
    "one expert": ([7], 7),
    "decode": ([1, 0, 0, 0, 1, 0, 1, 0], 3),
    "one row": ([0, 1], 1),
    "no rows": ([0, 0], 0),
}
FORWARD = False  # not by the transposed kernels
FORMS = {
    "grouped_matmul": module.grouped_matmul,
    "reference": module.grouped_matmul_reference,
    "loop": lambda r, s, k: module._loop(r, s, k, FORWARD),
    "blocks": lambda r, s, k: module._blocks(r, s, k, FORWARD),
    "batched": lambda r, s, k: module._batched(
        r, s, k, FORWARD, int(max(1, bridge.numpy(s).max()))
    ),
}


def example(name, rng):
    sizes, count = CASES[name]
    rows = rng.normal(size=(count, D)).astype("float32")
    kernel = rng.normal(size=(len(sizes), D, F)).astype("float32")
    dy = rng.normal(size=(count, F)).astype("float32")
    return rows, np.array(sizes, "int32"), kernel, dy


def loop(rows, sizes, kernel, dy):
    """The product, and the gradients of `sum(product * dy)`."""
    y, drows = np.zeros((len(rows), F)), np.zeros(rows.shape)
    dkernel = np.zeros(kernel.shape)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    for n, e in enumerate(owners):
        y[n] = rows[n] @ kernel[e]
        drows[n] = kernel[e] @ dy[n]
        dkernel[e] += np.outer(rows[n], dy[n])
    return y, drows, dkernel


def close(got, wanted):
    np.testing.assert_allclose(bridge.numpy(got), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_values(name, form, rng):
    rows, sizes, kernel, dy = example(name, rng)
    if name == "no rows" and form not in ("grouped_matmul", "reference"):
        pytest.skip("the choice is made before")
    got = FORMS[form](*map(ops.convert_to_tensor, (rows, sizes, kernel)))
    assert tuple(got.shape) == (len(rows), F)
    close(got, loop(rows, sizes, kernel, dy)[0])


@pytest.mark.parametrize("form", ["grouped_matmul", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(name, form, rng, gradients):
    rows, sizes, kernel, dy = example(name, rng)
    tensor, weight = map(ops.convert_to_tensor, (sizes, dy))

    def objective(rows, kernel):
        return ops.sum(FORMS[form](rows, tensor, kernel) * weight)

    _, (drows, dkernel), _ = gradients(objective, [rows, kernel])
    _, wanted_rows, wanted_kernel = loop(rows, sizes, kernel, dy)
    close(drows, wanted_rows)
    close(dkernel, wanted_kernel)


@pytest.mark.parametrize("form", ["loop", "blocks"])
@pytest.mark.parametrize("name", [n for n in CASES if n != "no rows"])
def test_kernel_gradient_forms(name, form, rng):
    rows, sizes, kernel, dy = example(name, rng)
    fn = {"loop": module._loop_outer, "blocks": module._blocks_outer}[form]
    got = fn(*map(ops.convert_to_tensor, (rows, dy, sizes)))
    close(got, loop(rows, sizes, kernel, dy)[2])


@pytest.mark.parametrize("name", [n for n in CASES if n != "no rows"])
def test_compiled(name, rng):
    """Where sizes have no value the form is chosen at run time."""
    backend = keras.backend.backend()
    rows, sizes, kernel, dy = example(name, rng)

    def both(rows, sizes, kernel, dy):
        return (
            module._product(rows, sizes, kernel, FORWARD),
            module._product(dy, sizes, kernel, True),
            module._kernel_gradient(rows, dy, sizes, kernel),
        )

    args = list(map(ops.convert_to_tensor, (rows, sizes, kernel, dy)))
    if backend == "jax":
        import jax

        results = [jax.jit(both)(*args)]
    elif backend == "tensorflow":
        import tensorflow as tf

        results = [
            tf.function(both)(*args),
            tf.function(
                both,
                input_signature=[
                    tf.TensorSpec((None, D)),
                    tf.TensorSpec(sizes.shape, "int32"),
                    tf.TensorSpec(kernel.shape),
                    tf.TensorSpec((None, F)),
                ],
            )(*args),
        ]
    else:
        results = [both(*args)]
    for result in results:
        for got, wanted in zip(
            result, loop(rows, sizes, kernel, dy), strict=True
        ):
            close(got, wanted)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a trap of TensorFlow's"
)
def test_tensorflow_compiles_once_for_all_sizes(rng):
    """Sizes are an input of what XLA compiled, not a constant in it."""
    import tensorflow as tf

    rows, sizes, kernel, dy = example("several blocks", rng)
    args = list(map(tf.constant, (rows, sizes, kernel, dy)))

    def forward(rows, sizes, kernel, dy):
        return module._product(rows, sizes, kernel, FORWARD)

    def backward(rows, sizes, kernel, dy):
        return module._kernel_gradient(rows, dy, sizes, kernel)

    for function in (forward, backward):
        compiled = tf.function(function, jit_compile=True)
        hlo = compiled.experimental_get_compiler_ir(*args)(stage="hlo")
        layout = hlo.split("entry_computation_layout=", 1)[1].split("->")[0]
        assert f"s32[{len(sizes)}]" in layout


def test_rows_of_no_expert_are_zero_whatever_they_hold(rng):
    rows, sizes, kernel, _ = example("spare rows", rng)
    rows[sizes.sum() :] = np.nan
    got = bridge.numpy(
        module.grouped_matmul(
            *map(ops.convert_to_tensor, (rows, sizes, kernel))
        )
    )
    assert (got[sizes.sum() :] == 0).all()
    assert np.isfinite(got).all()


@pytest.mark.parametrize("name", [n for n in CASES if n != "no rows"])
def test_whole_feed_forwards(name, rng):
    rows, sizes, wi, _ = example(name, rng)
    wo = rng.normal(size=(len(sizes), F, D)).astype("float32")

    def feed_forward(multiply, x, wi, wo):
        return multiply(ops.relu(multiply(x, wi)), wo)

    @compiled()
    def call(rows, sizes, wi, wo):
        return module.grouped_feed_forward(feed_forward, rows, sizes, (wi, wo))

    got = call(*map(ops.convert_to_tensor, (rows, sizes, wi, wo)))
    wanted = np.zeros_like(rows)
    for n, e in enumerate(np.repeat(np.arange(len(sizes)), sizes)):
        wanted[n] = np.maximum(rows[n] @ wi[e], 0) @ wo[e]
    close(got, wanted)
