"""Experts with LoRA equal experts whose kernels hold the adapters."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers.experts import Experts

E, D, F, RANK = 3, 8, 12, 2


def experts(activation="relu", use_bias=False):
    layer = Experts(E, F, activation=activation, use_bias=use_bias)
    layer.build((None, E, None, D))
    return layer


def dense_layers(layer):
    return [*layer._wi, layer.wo]


def adapted_and_merged(rng, **arguments):
    """A bank with adapters, and one with what they add in its kernels."""
    adapted, merged = experts(**arguments), experts(**arguments)
    pairs = zip(dense_layers(adapted), dense_layers(merged), strict=True)
    for ours, theirs in pairs:
        ours.enable_lora(RANK, lora_alpha=6)
        for name in ("lora_kernel_a", "lora_kernel_b"):
            variable = getattr(ours, name)
            variable.assign(rng.normal(size=variable.shape))
        a, b = (
            ops.convert_to_numpy(w)
            for w in (ours.lora_kernel_a, ours.lora_kernel_b)
        )
        change = np.einsum("edr,erf->edf", a, b) * 6 / RANK
        theirs._kernel.assign(ops.convert_to_numpy(ours._kernel) + change)
        if ours.bias is not None:
            theirs.bias.assign(ops.convert_to_numpy(ours.bias))
    return adapted, merged


def calls(rng):
    """Each way in which tokens reach the experts, by name."""
    rows = rng.normal(size=(7, D)).astype("float32")
    buffers = rng.normal(size=(2, E, 4, D)).astype("float32")
    sizes = np.array([4, 0, 3], "int32")
    index = np.array([2, 0, 0, 1, 2, 2, 0], "int32")
    return {
        "buffers": lambda layer: layer(buffers, training=True),
        "buffers in evaluation": lambda layer: layer(buffers),
        "sorted rows": lambda layer: layer(rows, sizes=sizes, training=True),
        "sorted rows in evaluation": lambda layer: layer(rows, sizes=sizes),
        "rows of a step": lambda layer: layer(rows, expert_index=index),
    }


@pytest.mark.parametrize(
    "arguments", [{}, {"activation": "gated-gelu", "use_bias": True}]
)
def test_adapters_add_to_the_kernels(arguments, rng):
    adapted, merged = adapted_and_merged(rng, **arguments)
    for name, call in calls(rng).items():
        found, wanted = (
            ops.convert_to_numpy(call(layer)) for layer in (adapted, merged)
        )
        assert np.abs(wanted).max() > 1
        np.testing.assert_allclose(
            found, wanted, rtol=1e-3, atol=1e-3, err_msg=name
        )


def test_each_expert_has_adapters_of_its_own(rng):
    adapted, _ = adapted_and_merged(rng)
    assert tuple(adapted.wo.lora_kernel_a.shape) == (E, F, RANK)
    assert tuple(adapted.wo.lora_kernel_b.shape) == (E, RANK, D)
    kernel = ops.convert_to_numpy(adapted.wo.kernel)
    a = ops.convert_to_numpy(adapted.wo.lora_kernel_a)
    b = ops.convert_to_numpy(adapted.wo.lora_kernel_b)
    base = ops.convert_to_numpy(adapted.wo._kernel)
    np.testing.assert_allclose(kernel, base + 3 * a @ b, rtol=1e-4, atol=1e-4)


def test_adapters_start_as_those_of_one_dense_layer():
    layer = experts()
    dense = keras.layers.Dense(F)
    dense.build((None, D))
    for each in (layer._wi[0], dense):
        each.enable_lora(64)
    a = ops.convert_to_numpy(layer._wi[0].lora_kernel_a)
    alone = ops.convert_to_numpy(dense.lora_kernel_a)
    assert a.std() == pytest.approx(alone.std(), rel=0.1)
    assert np.abs(a[0] - a[1]).max() > 0.1
    assert not ops.convert_to_numpy(layer._wi[0].lora_kernel_b).any()


def test_gradients_reach_the_adapters_of_every_expert(gradients, rng):
    """By the chain rule from those of kernels that hold the adapters."""
    adapted, merged = adapted_and_merged(rng)
    for name, call in calls(rng).items():
        found = gradients(
            lambda call=call: ops.sum(call(adapted) ** 2),
            [],
            [
                variable
                for dense in dense_layers(adapted)
                for variable in (dense.lora_kernel_a, dense.lora_kernel_b)
            ],
        )[2]
        kernels = [dense._kernel for dense in dense_layers(merged)]
        wanted = gradients(
            lambda call=call: ops.sum(call(merged) ** 2), [], kernels
        )[2]
        for i, dense in enumerate(dense_layers(adapted)):
            a, b = (
                ops.convert_to_numpy(w)
                for w in (dense.lora_kernel_a, dense.lora_kernel_b)
            )
            of_a = np.einsum("edf,erf->edr", wanted[i], b) * 6 / RANK
            of_b = np.einsum("edr,edf->erf", a, wanted[i]) * 6 / RANK
            for of, right in zip(found[2 * i :], (of_a, of_b), strict=False):
                assert np.abs(right).max() > 1
                close = 1e-4 * np.abs(right).max()
                np.testing.assert_allclose(of, right, atol=close, err_msg=name)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_adapters_of_quantized_experts(mode, rng):
    layer = experts()
    buffers = rng.normal(size=(2, E, 4, D)).astype("float32")
    for dense in dense_layers(layer):
        dense.quantize(mode)
    before = ops.convert_to_numpy(layer(buffers))
    layer.wo.enable_lora(RANK)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(buffers)), before, rtol=1e-5, atol=1e-6
    )
    kernel = layer.wo.lora_kernel_b
    kernel.assign(rng.normal(size=kernel.shape))
    after = ops.convert_to_numpy(layer(buffers))
    assert np.abs(after - before).max() > 0.1


def test_a_config_makes_the_same_layer():
    layer = dense_layers(experts(use_bias=True))[0]
    again = keras_switch.layers.experts.ExpertDense.from_config(
        layer.get_config()
    )
    again.build((E, None, D))
    assert again.get_config() == layer.get_config()
    assert [w.shape for w in again.weights] == [w.shape for w in layer.weights]
