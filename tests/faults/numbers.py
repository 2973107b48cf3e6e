"""Degenerate numbers in a SwitchLayer: finite, or the documented outcome.

Each case is held to the NumPy oracle of tests/reference.py, which knows no
backend and no dispatch: what agrees with it on every backend and under every
dispatch is the same everywhere. Where the oracle's float64 tells numbers apart
that are one in float32, dispatches are held to each other. A token that is not
finite is NaN in its own row and nowhere else. Faults planted in the layer must
be noticed.
"""

import functools
from inspect import signature

import numpy as np
import pytest
from keras import ops

import keras_switch
from tests import bridge, reference
from tests.faults.runner import Case
from tests.layers import invariants_test

_QUICK = 16
_D, _F = 6, 5
_DISPATCHES = ("einsum", "gather", "dropless")
# Of outputs of size one: what float32 sums and half precision lose.
_TOLERANCES = {"float32": 2e-5, "bfloat16": 6e-2, "float16": 1e-2}
# Experts, tokens, capacity: one of each, fewer and more of one than another.
_SHAPES = ((1, 1, 1), (1, 8, 2), (4, 3, 1), (4, 8, 3), (4, 8, 8))
_MASKS = {
    "no padding": lambda length: np.ones((2, length)),
    "padding on the right": lambda n: np.arange(n) < np.array([[n], [n // 2]]),
    "padding on the left": lambda n: np.arange(n) >= np.array([[0], [n // 2]]),
    "a row of padding": lambda n: np.array([[1.0], [0.0]]) * np.ones(n),
    "padding alone": lambda length: np.zeros((2, length)),
}
_REGIMES = (
    *("normal", "ties", "one expert", "zeros", "tiny", "huge"),
    *("NaN", "infinity", "minus infinity", "beyond float32"),
)


def cases(quick: bool) -> list[Case]:
    """All cases, or some that are quick."""
    grid = [
        Case(
            f"{dtype}, {router}, {regime}",
            functools.partial(_grid, dtype, router, regime),
            600,
        )
        for dtype in _TOLERANCES
        for router in ("switch", "top_k", "expert_choice")
        for regime in _REGIMES
    ]
    found = []
    for name, arguments in (
        ("0 experts", {"num_experts": 0}),
        ("-1 experts", {"num_experts": -1}),
        ("true experts", {"num_experts": True}),
        ("1.5 experts", {"num_experts": 1.5}),
        ("a capacity of 0", {"capacity": 0}),
        ("a capacity of -1", {"capacity": -1}),
        ("a capacity factor of 0", {"capacity_factor": 0}),
        ("a capacity factor of NaN", {"capacity_factor": float("nan")}),
        ("an infinite capacity factor", {"capacity_factor": float("inf")}),
        ("an evaluation factor of 0", {"eval_capacity_factor": 0}),
        ("a least capacity of 0", {"min_capacity": 0}),
        ("groups of 0", {"group_size": 0}),
        ("a width of 0", {"intermediate_dim": 0}),
        ("a dropout of 1", {"dropout": 1.0}),
        ("a scale of NaN", {"init_scale": float("nan")}),
    ):
        run = functools.partial(_refused, arguments)
        found.append(Case(f"{name}: an error that names it", run))
    for shape in ((0, 8, _D), (2, 0, _D), (0, 0, _D)):
        run = functools.partial(_empty, shape)
        found.append(Case(f"tokens of shape {shape}: nothing out", run, 120))
    for mutant, name in invariants_test.PAIRS:
        label = f"planted: {mutant.__name__.replace('_', ' ')}, seen by {name}"
        run = functools.partial(_planted, mutant, name)
        found.append(Case(label, run, 600))
    return found[::_QUICK] if quick else grid + found


def _grid(dtype, router, regime):
    for experts, length, capacity in _SHAPES:
        k = min(2, experts) if router == "top_k" else 1
        for mask in _MASKS.values():
            mask_here = mask(length).astype("int32")
            found = {
                dispatch: _run(
                    reference.Spec(
                        experts,
                        router,
                        k=k,
                        dispatch=dispatch,
                        capacity=None if dispatch == "dropless" else capacity,
                        training=True,
                    ),
                    dtype,
                    regime,
                    mask_here,
                )
                for dispatch in _DISPATCHES
                if (router, dispatch) != ("expert_choice", "dropless")
            }
            pairs = [("einsum", "gather")]
            if capacity >= length and "dropless" in found:
                pairs.append(("einsum", "dropless"))
            for one, other in pairs:
                _close(found[one], found[other], dtype)


@functools.cache
def _layer(router, experts, k, dispatch, capacity, dtype, ties):
    spec = reference.Spec(
        experts, router, k=k, dispatch=dispatch, capacity=capacity
    )
    layer = bridge.make_layer(spec, _D, _F, dtype=dtype)
    if ties:
        layer.router.kernel.assign(layer.router.kernel * 0)
    return layer


def _run(spec, dtype, regime, mask):
    """The output in float32, held to the oracle where it has the numbers."""
    ties = regime == "ties"
    names = (spec.router, spec.num_experts, spec.k, spec.dispatch)
    layer = _layer(*names, spec.capacity, dtype, ties)
    x = ops.cast(_tokens(regime, mask.shape, dtype), dtype)
    y, routes = layer(x, padding_mask=mask, training=True, return_routing=True)
    y = bridge.numpy(ops.cast(y, "float32"))
    x = bridge.numpy(ops.cast(x, "float32"))
    real = mask == 1
    lost = np.isnan(y).any(axis=-1)
    assert (y[~real] == 0).all()
    assert np.isfinite(y[~lost]).all()
    finite = np.isfinite(x).all(axis=-1)
    assert (lost | finite | ~real).all(), "a bad token has a good output"
    for loss in layer.losses:
        assert np.isfinite(float(bridge.numpy(loss)))
    assert np.isfinite(bridge.numpy(layer.routing_stats.value)).all()
    if regime == "beyond float32":
        lost[0, 0] = False  # its logits may or may not be finite
        assert not lost.any()
    elif regime == "huge":
        # Probabilities are 0 in float32 that float64 still tells apart.
        assert not lost.any()
    else:
        wanted = bridge.run_oracle(spec, layer, x, mask)
        edges = _without_nan(routes), wanted.edges, spec.num_experts
        bridge.assert_edges_equal(*edges)
        _close(y, wanted.y, dtype)
    return y


def _close(y, wanted, dtype):
    """Equal up to rounding, and NaN in the same rows."""
    lost = np.isnan(wanted).any(axis=-1)
    np.testing.assert_array_equal(np.isnan(y).any(axis=-1), lost)
    scale = max(np.abs(wanted[~lost]).max(initial=0), 1e-3)
    difference = np.abs(y[~lost] - wanted[~lost]).max(initial=0)
    assert difference <= _TOLERANCES[dtype] * scale, f"{difference} of {scale}"


def _without_nan(routes):
    """A gate of NaN tells the layer of a token it can't route."""
    gate = ops.where(ops.isnan(routes.gate), 0.0, routes.gate)
    return routes._replace(gate=gate)


def _tokens(regime, shape, dtype):
    x = np.random.default_rng(5).normal(size=(*shape, _D)).astype("float32")
    half = dtype == "float16"
    if regime == "one expert":
        x = np.abs(x[:1, :1]) * np.ones_like(x)
    elif regime == "zeros":
        x = np.zeros_like(x)
    elif regime in ("tiny", "huge"):
        x *= {"tiny": 1e-4 if half else 1e-30, "huge": 1e3 if half else 1e15}[
            regime
        ]
    elif regime == "beyond float32":
        x[0, 0] = 3e38
    elif regime not in ("normal", "ties"):
        value = {"NaN": np.nan, "infinity": np.inf}.get(regime, -np.inf)
        x[0, 0, 2] = x[1, -1, 0] = value
    return x


def _refused(arguments):
    (name,) = arguments
    given = {"num_experts": 4, "intermediate_dim": 8, **arguments}
    with pytest.raises(ValueError, match=f"{name} must be"):
        keras_switch.SwitchLayer(**given)


def _empty(shape):
    for dispatch in _DISPATCHES:
        spec = reference.Spec(4, dispatch=dispatch)
        layer = bridge.make_layer(spec, _D, _F)
        for training in (True, False):
            y = layer(np.zeros(shape, "float32"), training=training)
            assert tuple(y.shape) == shape


def _planted(mutant, name):
    call = keras_switch.SwitchLayer.call
    with pytest.MonkeyPatch.context() as patch:

        def plant(patch):
            mutant(patch)
            # Keras reads it of each layer that is made.
            keras_switch.SwitchLayer.call.__signature__ = signature(call)

        invariants_test.test_mutant_is_killed(plant, name, patch)
