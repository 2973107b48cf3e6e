"""Tokens that are not finite, or do not stay so: nobody else's row moves."""

import numpy as np
import pytest
from keras import ops

from tests import bridge, reference
from tests.layers.switch_layer_test import (
    DISPATCHES,
    PAIRS,
    TIGHT,
    D,
    E,
    T,
    make,
    normal,
)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("group_size", [None, 2 * T])
@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_non_finite_token(training, router, dispatch, group_size, bad, rng):
    """Its own row is NaN; nothing else moves, and it takes no capacity."""
    kwargs = {"dispatch": dispatch, "group_size": group_size, **TIGHT}
    layer = make(router, **kwargs)
    spec = reference.Spec(E, router, k=2, training=training, **kwargs)
    x = normal(rng, 2, T, D)
    x[0, 1, 2] = bad
    y = layer(x, training=training)
    wanted = bridge.run_oracle(spec, layer, x)
    assert np.isnan(wanted.y[0, 1]).all()
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_statistics_equal(layer, wanted)
    masked = np.ones((2, T))
    masked[0, 1] = 0
    finite = np.where(masked[..., None], x, 0)
    z = layer(finite, padding_mask=masked, training=training)
    z = bridge.numpy(z).copy()
    z[0, 1] = np.nan
    np.testing.assert_array_equal(bridge.numpy(y), z)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_a_finite_token_with_infinite_logits_is_nan(dispatch, rng):
    """A row whose routing cannot be trusted is not silently dropped."""
    layer = make(dispatch=dispatch)
    x = normal(rng, 2, T, D)
    wanted = bridge.numpy(layer(x)).copy()
    x[0, 1] = 3e38
    wanted[0, 1] = np.nan
    np.testing.assert_array_equal(bridge.numpy(layer(x)), wanted)


@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_a_token_that_overflows_is_alone(training, router, dispatch, rng):
    """In its expert, though it and its logits are finite."""
    roomy = {"capacity_factor": 8.0, "eval_capacity_factor": 8.0}
    layer = make(router, dispatch=dispatch, group_size=2 * T, **roomy)
    wo = bridge.variables(layer)["wo"]
    wo.assign(wo * 1e20)
    x = normal(rng, 2, T, D)
    x[0, 1] *= 1e22
    y = bridge.numpy(layer(x, training=training)).copy()
    assert not np.isfinite(y[0, 1]).all()
    mask = np.ones((2, T))
    mask[0, 1] = 0
    wanted = bridge.numpy(layer(x, padding_mask=mask, training=training))
    y[0, 1] = 0
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_non_finite_padding_reaches_no_gradient(dispatch, rng, gradients):
    """0 times NaN is NaN: not even where it is multiplied by nothing."""
    layer = make(dispatch=dispatch)
    x = normal(rng, 2, T, D)
    mask = np.ones((2, T))
    mask[:, 0] = 0
    variables = bridge.variables(layer).values()
    results = []
    for filler in (0.0, np.nan):
        x[:, 0] = filler

        def objective(x):
            y = layer(x, padding_mask=mask, training=True)
            return ops.sum(y**2) + sum(layer.losses)

        results.append(gradients(objective, [x], variables))
    (_, (dx,), dws), (_, (dirty,), dirty_ws) = results
    np.testing.assert_array_equal(dirty, dx)
    for dw, dirty_w in zip(dws, dirty_ws, strict=True):
        np.testing.assert_array_equal(dirty_w, dw)


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_non_finite_padding_is_zero(dispatch, rng):
    layer = make(dispatch=dispatch)
    x = normal(rng, 2, T, D)
    mask = np.ones((2, T))
    mask[0, 1] = 0
    clean = bridge.numpy(layer(x, padding_mask=mask))
    x[0, 1] = np.nan
    y = bridge.numpy(layer(x, padding_mask=mask))
    assert (y[0, 1] == 0).all()
    np.testing.assert_array_equal(y, clean)
