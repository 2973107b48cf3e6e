"""Soft routing: by hand, and against `reference_soft.py`."""

import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch import analysis
from keras_switch.layers.transformer_layer import TransformerLayer
from tests import bridge, reference, reference_soft
from tests.reference_test import numerical_gradient

B, T, D, E = 3, 8, 6, 4
MASK = np.array([[1] * 8, [1] * 5 + [0] * 3, [0, 1, 2, 2, 0, 1, 1, 0]])


def make(slots=2, **kwargs):
    spec = reference.Spec(E, router="soft", **kwargs)
    router = keras_switch.SoftRouter(slots=slots)
    layer = bridge.make_layer(spec, D, router=router)
    layer.router.scale.assign(3.0)
    return spec, layer


def test_by_hand():
    """Two tokens along the columns of two slots: cosines of 1 and 0."""
    router = keras_switch.SoftRouter(2)
    router.build((None, None, 2))
    router.kernel.assign(5 * np.eye(2))
    router.scale.assign(np.log(3.0))
    tokens = np.array([[[2.0, 0.0], [0.0, 7.0], [9.0, 9.0]]], "float32")
    mask = np.array([[True, True, False]])
    routes = router(ops.convert_to_tensor(tokens), mask)
    assert isinstance(routes, keras_switch.RouterMask)
    wanted = [[[0.75], [0.25]], [[0.25], [0.75]], [[0], [0]]]
    for found in bridge.routes_to_numpy(routes):
        assert found.dtype == "float32"
        np.testing.assert_allclose(found, [wanted], rtol=1e-5)


@pytest.mark.parametrize("group_size", [None, 5, 100])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("dispatch", ["gather", "einsum"])
def test_layer_equals_oracle(
    dispatch, activation, slots, group_size, rng, gradients
):
    spec, layer = make(
        slots, dispatch=dispatch, activation=activation, group_size=group_size
    )
    x, dy = rng.normal(size=(2, B, T, D))
    weight = ops.convert_to_tensor(dy.astype("float32"))
    for training in (True, False):
        y = layer(x.astype("float32"), padding_mask=MASK, training=training)
        assert not layer.losses
    weights = bridge.weights(layer)
    wanted = reference_soft.layer(spec, x, weights, MASK)
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_statistics_equal(layer, wanted)

    def objective(x):
        return ops.sum(layer(x, padding_mask=MASK, training=True) * weight)

    variables = bridge.variables(layer)
    _, (dx,), dws = gradients(objective, [x], variables.values())
    grads = reference_soft.gradients(spec, x, weights, dy, MASK)
    np.testing.assert_allclose(dx, grads["x"], rtol=1e-5, atol=1e-5)
    for name, dw in zip(variables, dws, strict=True):
        np.testing.assert_allclose(
            dw, grads[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_the_oracles_gradients_equal_central_differences(rng):
    spec, layer = make(slots=2, group_size=6)
    weights = bridge.weights(layer)
    x, dy = rng.normal(size=(2, B, T, D))

    def objective():
        return (reference_soft.layer(spec, x, weights, MASK).y * dy).sum()

    grads = reference_soft.gradients(spec, x, weights, dy, MASK)
    for name, array in {"x": x, **weights}.items():
        wanted = numerical_gradient(objective, array)
        np.testing.assert_allclose(
            grads[name], wanted, rtol=1e-5, atol=1e-7, err_msg=name
        )
        assert np.abs(wanted).max() > 1e-3, name


def test_padding_and_bad_tokens_are_in_no_slot(rng):
    _, layer = make()
    x = rng.normal(size=(B, T, D)).astype("float32")
    y = bridge.numpy(layer(x, padding_mask=MASK))
    assert (y[MASK == 0] == 0).all()
    other = np.where(MASK[..., None] > 0, x, np.nan).astype("float32")
    again = bridge.numpy(layer(other, padding_mask=MASK))
    np.testing.assert_array_equal(again, y)
    short = bridge.numpy(layer(x[1:2, :5]))
    np.testing.assert_allclose(short[0], y[1, :5], rtol=1e-5, atol=1e-6)
    without = MASK.copy()
    without[0, 3] = 0
    wanted = bridge.numpy(layer(x, padding_mask=without)).copy()
    x[0, 3, 1], wanted[0, 3] = np.inf, np.nan
    found = bridge.numpy(layer(x, padding_mask=MASK))
    np.testing.assert_array_equal(found, wanted)


def test_an_earlier_token_sees_later_ones(rng):
    """The reason why a decoder refuses it."""
    _, layer = make()
    x = rng.normal(size=(1, T, D)).astype("float32")
    y = bridge.numpy(layer(x))
    x[:, 5:] = rng.normal(size=(1, 3, D))
    assert np.abs(bridge.numpy(layer(x)) - y)[:, :5].max() > 0.01
    soft = keras_switch.SwitchLayer(E, 8, router="soft")
    with pytest.raises(ValueError, match="must be causal in a decoder.*later"):
        TransformerLayer(soft, 2, 3, cross_attention=True)


def test_routes_and_an_empty_batch(rng):
    _, layer = make(slots=3)
    x = rng.normal(size=(B, T, D)).astype("float32")
    _, routes = layer(x, padding_mask=MASK, return_routing=True)
    dispatch, combine = bridge.routes_to_numpy(routes)
    assert dispatch.shape == combine.shape == (B, T, E, 3)
    np.testing.assert_allclose(dispatch.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(combine.sum((2, 3)), MASK > 0, rtol=1e-5)
    y, routes = layer(x[:0], return_routing=True)
    assert y.shape == (0, T, D)
    assert tuple(routes.dispatch.shape) == (0, T, E, 3)


def test_the_work_of_a_group_is_that_of_its_slots(rng, monkeypatch):
    """Whatever the capacity factor says."""
    _, layer = make(slots=3, capacity_factor=0.1, eval_capacity_factor=9.0)
    seen = []
    call = layer.experts.call
    monkeypatch.setattr(
        layer.experts,
        "call",
        lambda x, **kwargs: seen.append(x.shape) or call(x, **kwargs),
    )
    x = rng.normal(size=(B, T, D)).astype("float32")
    layer(x), layer(x[:, :2])
    assert [tuple(shape) for shape in seen] == [(B, E, 3, D)] * 2


def test_what_it_refuses():
    with pytest.raises(ValueError, match="^slots must be"):
        keras_switch.SoftRouter(slots=0)
    with pytest.raises(ValueError, match="^dispatch must be"):
        keras_switch.SwitchLayer(4, 8, router="soft", dispatch="dropless")


def test_a_report_of_edges_is_refused(rng):
    backbone = keras_switch.SwitchBackbone(
        20, 1, 1, 2, 8, 8, 4, 2, 1, 0, router="soft"
    )
    with pytest.raises(ValueError, match="SoftRouter.*no edges"):
        analysis.routing_report(backbone, [])
