import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers import transfer
from tests.mesh import one_device

on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="layouts need JAX"
)
B, T, D, E = 3, 40, 8, 4


def layer(**arguments):
    made = keras_switch.SwitchLayer(E, 16, init_scale=2.0, **arguments)
    made.build((B, T, D))
    return made


def rows(seed=0):
    return np.random.default_rng(seed).normal(size=(B, T, D)).astype("float32")


def both(made, x, **options):
    """What a layer returns without a mesh, and over one."""
    alone = made(x, **options)
    with one_device.spread():
        spread = made(x, **options)
    return ops.convert_to_numpy(alone), ops.convert_to_numpy(spread)


@on_jax
@pytest.mark.parametrize(
    "router, dispatch",
    (
        ("Switch", "gather"),
        ("TopK", "gather"),
        ("ExpertChoice", "gather"),
        ("TopK", "einsum"),
    ),
)
def test_a_mesh_changes_nothing_in_training(router, dispatch):
    router = getattr(keras_switch, f"{router}Router")(exploration="argmax")
    made = layer(router=router, dispatch=dispatch, capacity_factor=1.0)
    alone, spread = both(made, rows(), training=True)
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


@on_jax
@pytest.mark.parametrize("choices", (1, 2))
@pytest.mark.parametrize("crowd", (0.0, 3.0, 100.0))
def test_dropless_over_a_mesh_drops_nothing(choices, crowd):
    """However many want one expert: each capacity of the program is used."""
    made = layer(router=keras_switch.TopKRouter(k=choices))
    kernel = ops.convert_to_numpy(made.router.kernel).copy()
    kernel[:, 0] += crowd
    made.router.kernel.assign(kernel)
    x = np.abs(rows()) if crowd > 10 else rows() + 0.3 * (crowd > 0)
    alone, spread = both(made, x, training=False)
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)
    largest = ops.convert_to_numpy(made.routing_stats.value)[1]
    assert choices > 1 or (largest > 2) == (crowd > 0)


@on_jax
def test_few_rows_need_one_capacity():
    assert transfer._capacities(8, 1, 4) == [8]
    assert transfer._capacities(64, 1, 8) == [16, 32, 64]
    assert transfer._capacities(64, 2, 4) == [64]


@on_jax
def test_padding_and_poison_stay_where_they_are():
    made = layer()
    x = rows()
    x[1, 2, 3] = np.nan
    mask = np.ones((B, T), "int32")
    mask[0, 5:] = 0
    alone, spread = both(made, x, padding_mask=mask)
    assert np.isnan(spread[1, 2]).all() and np.isnan(spread).sum() == D
    assert not spread[0, 5:].any()
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


@on_jax
@pytest.mark.parametrize("trainable", (True, False))
def test_values_that_fit_hands_over_reach_the_experts(trainable):
    """In a step the variables are empty; frozen ones are no exception."""
    made = layer()
    made.trainable = trainable
    values = [(v, 2 * v.value) for v in made.weights]

    def run(x):
        with keras.StatelessScope(values):
            return made(x)

    alone = run(rows())
    with one_device.spread():
        spread = run(rows())
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-5)


@on_jax
def test_a_step_of_one_token_and_groups_of_tokens():
    made = layer(group_size=16)
    for x in (rows()[:, :1], rows()):
        alone, spread = both(made, x)
        np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


@on_jax
def test_gradients_over_a_mesh():
    import jax

    made = layer(router=keras_switch.SwitchRouter(exploration="argmax"))
    values = [v.value for v in made.trainable_variables]
    others = [v.value for v in made.non_trainable_variables]

    def loss(values, x, training):
        y, _ = made.stateless_call(values, others, x, training=training)
        return ops.sum(ops.square(y))

    for training in (True, False):
        alone = jax.grad(loss, argnums=(0, 1))(values, rows(), training)
        with one_device.spread():
            spread = jax.grad(loss, argnums=(0, 1))(values, rows(), training)
        for one, other in zip(
            jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True
        ):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)


@on_jax
def test_dropless_training_over_a_mesh_has_no_dropout():
    router = keras_switch.SwitchRouter(exploration="argmax")
    made = layer(router=router, dispatch="dropless")
    alone, spread = both(made, rows(), training=True)
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)
    made = layer(dispatch="dropless", dropout=0.1)
    with one_device.spread():
        with pytest.raises(ValueError, match="with dropout over a mesh"):
            made(rows(), training=True)
        assert made(rows()).shape == (B, T, D)


@pytest.mark.parametrize("dispatch", transfer.DISPATCHES)
def test_every_dispatch_is_known_to_the_layer(dispatch):
    assert layer(dispatch=dispatch)(rows()).shape == (B, T, D)
