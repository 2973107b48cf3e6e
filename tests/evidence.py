"""Prints, for the backend of KERAS_BACKEND, what the tests assert: how far the
layer is from the NumPy oracle, one expert from the dense layer, cached decoding
from a full pass, and a row alone from the same row in a batch.

    KERAS_BACKEND=jax python -m tests.evidence
"""

import keras
import numpy as np
from keras import ops

import keras_switch
from keras_switch.layers import FeedForward
from keras_switch.models import decoding
from tests import bridge, conftest, reference_gradients, reference_soft
from tests.layers import soft_router_test
from tests.layers import switch_layer_oracle_test as cases
from tests.models import tiny


def differentiate(fn, arrays, variables):
    """Value and gradients in NumPy, by the backend's own derivative."""
    return conftest.gradients.__wrapped__()(fn, arrays, variables)


def oracle_row(router, squeeze, dispatch, rng):
    """Largest differences of outputs and of all gradients, and the drops."""
    spec, layer = cases.make(router, squeeze, dispatch, training=True)
    x, dy = rng.normal(size=(2, cases.B, cases.T, cases.D))
    weight = ops.convert_to_tensor(dy.astype("float32"))

    def call(x):
        return layer(
            x, padding_mask=cases.MASK, training=True, token_ids=cases.IDS
        )

    def objective(x):
        return ops.sum(call(x) * weight) + sum(layer.losses)

    y = call(x.astype("float32"))
    wanted = bridge.run_oracle(spec, layer, x, cases.MASK, cases.IDS)
    variables = bridge.variables(layer)
    _, (dx,), dws = differentiate(objective, [x], variables.values())
    grads = reference_gradients.gradients(
        spec, x, bridge.weights(layer), dy, cases.MASK, cases.IDS
    )
    slopes = [np.abs(dx - grads["x"]).max()]
    slopes += [
        np.abs(dw - grads[name]).max()
        for name, dw in zip(variables, dws, strict=True)
    ]
    dropped = wanted.statistics["dropped_fraction"]
    return np.abs(bridge.numpy(y) - wanted.y).max(), max(slopes), dropped


def print_oracle(rng):
    print("Largest absolute differences over three capacities:")
    print("| router | dispatch | dropped, at most | outputs | gradients |")
    print("|---|---|---|---|---|")
    for router, dispatch in cases.possible(cases.ROUTERS):
        rows = [
            oracle_row(router, squeeze, dispatch, rng)
            for squeeze in cases.SQUEEZE
        ]
        y, slope, dropped = np.max(rows, axis=0)
        print(
            f"| {router} | {dispatch} | {dropped:.0%} | {y:.1e} "
            f"| {slope:.1e} |",
            flush=True,
        )
    for dispatch in ("einsum", "gather"):
        y, slope = np.max([soft_row(dispatch, g, rng) for g in (None, 5)], 0)
        print(f"| soft | {dispatch} | 0% | {y:.1e} | {slope:.1e} |")


def soft_row(dispatch, group_size, rng):
    """As `oracle_row`: no token has a place that another could take."""
    spec, layer = soft_router_test.make(
        slots=3, dispatch=dispatch, group_size=group_size
    )
    x, dy = rng.normal(size=(2, cases.B, cases.T, cases.D))
    weight = ops.convert_to_tensor(dy.astype("float32"))

    def call(x):
        return layer(x, padding_mask=cases.MASK, training=True)

    y = call(x.astype("float32"))
    variables = bridge.variables(layer)
    _, (dx,), dws = differentiate(
        lambda x: ops.sum(call(x) * weight), [x], variables.values()
    )
    weights = bridge.weights(layer)
    wanted = reference_soft.layer(spec, x, weights, cases.MASK)
    grads = reference_soft.gradients(spec, x, weights, dy, cases.MASK)
    slopes = [np.abs(dx - grads["x"]).max()]
    slopes += [
        np.abs(dw - grads[name]).max()
        for name, dw in zip(variables, dws, strict=True)
    ]
    return np.abs(bridge.numpy(y) - wanted.y).max(), max(slopes)


def print_one_expert(rng):
    x = rng.normal(size=(3, 16, 8)).astype("float32")
    dense = FeedForward(32, init_scale=1.0)
    dense.build(x.shape)
    kernels = [bridge.numpy(v) for v in dense.trainable_variables]
    for dispatch in cases.DISPATCHES:
        layer = keras_switch.SwitchLayer(1, 32, dispatch=dispatch)
        layer.build(x.shape)
        bridge.variables(layer)["wi"].assign(kernels[0][None])
        bridge.variables(layer)["wo"].assign(kernels[1][None])
        results = []
        for module in (dense, layer):
            variables = [
                v for v in module.trainable_variables if v.shape[-1] in (8, 32)
            ]
            value, dx, dw = differentiate(
                lambda x, m=module: ops.sum(m(x, training=True) ** 2),
                [x],
                variables,
            )
            y = bridge.numpy(module(x, training=True))
            results.append([y, *dx, *(np.squeeze(d) for d in dw)])
        gaps = [
            np.abs(a - b).max() / np.abs(a).max()
            for a, b in zip(*results, strict=True)
        ]
        print(
            f"one expert against dense, {dispatch}: outputs {gaps[0]:.1e}, "
            f"gradients {max(gaps[1:]):.1e} (relative)"
        )


def print_cached_decoding(rng):
    lm = tiny.lm()
    x = tiny.inputs(rng, batch_size=3, decoder_length=6)
    x["decoder_padding_mask"] = np.ones_like(x["decoder_padding_mask"])
    full = bridge.numpy(lm(x, training=False))
    first = {**x, "decoder_padding_mask": x["decoder_padding_mask"].copy()}
    first["decoder_padding_mask"][:, 1:] = 0
    hidden, cache = decoding.read_prompt(lm, first)
    worst = np.abs(bridge.numpy(lm._logits(hidden))[:, 0] - full[:, 0]).max()
    ids = ops.convert_to_tensor(x["decoder_token_ids"])
    for index in range(1, 7):
        logits, _, cache = decoding.next_token(lm, 0, ids, cache, index)
        gap = np.abs(bridge.numpy(logits) - full[:, index - 1]).max()
        worst = max(worst, gap)
    print(f"cached decoding against a full pass: logits {worst:.1e}")


def print_isolation(rng):
    layer = keras_switch.SwitchLayer(8, 128)
    layer.build((None, None, 64))
    bridge.fill(layer)
    x = rng.normal(size=(8, 48, 64)).astype("float32")
    whole, worst = bridge.numpy(layer(x)), 0.0
    for rows in (1, 2, 3, 5):
        part = bridge.numpy(layer(x[:rows]))
        worst = max(worst, np.abs(part - whole[:rows]).max())
    for pad in (1, 5, 16):
        longer = np.pad(x, ((0, 0), (0, pad), (0, 0)), constant_values=9.0)
        mask = np.arange(48 + pad)[None] < np.full((8, 1), 48)
        part = bridge.numpy(layer(longer, padding_mask=mask))[:, :48]
        worst = max(worst, np.abs(part - whole).max())
    print(f"SwitchLayer, a row alone and padded against the batch: {worst}")
    lm = tiny.lm(hidden_dim=32, num_heads=4, key_value_dim=8)
    x = tiny.inputs(rng, batch_size=6, encoder_length=24, decoder_length=16)
    whole = bridge.numpy(lm(x, training=False))
    real = x["decoder_padding_mask"][..., None] > 0
    alone, padded = 0.0, 0.0
    for row in range(6):
        one = {name: value[row : row + 1] for name, value in x.items()}
        gap = np.abs(bridge.numpy(lm(one, training=False)) - whole[row])
        alone = max(alone, (gap * real[row]).max())
    longer = {n: np.pad(v, ((0, 0), (0, 7))) for n, v in x.items()}
    gap = np.abs(bridge.numpy(lm(longer, training=False))[:, :16] - whole)
    padded = (gap * real).max()
    print(f"whole model, a row alone against the batch: logits {alone:.1e}")
    print(f"whole model, 7 more padding: logits {padded:.1e}")
    print(f"(logits up to {np.abs(whole).max():.1f})")


if __name__ == "__main__":
    print(f"Backend {keras.backend.backend()}, CPU, float32.\n")
    print_oracle(np.random.default_rng(0))
    print()
    print_one_expert(np.random.default_rng(1))
    print_cached_decoding(np.random.default_rng(2))
    print_isolation(np.random.default_rng(3))
