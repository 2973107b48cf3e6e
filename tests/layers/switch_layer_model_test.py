"""SwitchLayer inside Keras models: graphs, dtypes, compilation, files."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers.routing_stats import STATISTICS
from tests import bridge, reference

B, T, D, E, F = 2, 8, 6, 4, 5
DISPATCHES = ["einsum", "gather", "dropless"]
ROUTERS = ["switch", "top_k", "expert_choice"]
# Experts that choose their tokens are never dropless.
PAIRS = [(r, d) for r in ROUTERS for d in DISPATCHES]
PAIRS.remove(("expert_choice", "dropless"))
BACKEND = keras.backend.backend()


def quiet_router(router):
    return bridge.make_router(reference.Spec(E, router=router, k=2))


def compiled(layer, **options):
    """The layer's evaluation as one compiled function of (x, mask)."""
    if BACKEND == "jax":
        import jax

        weights = [v.value for v in layer.trainable_variables]
        state = [v.value for v in layer.non_trainable_variables]

        @jax.jit
        def run(x, mask):
            y, _ = layer.stateless_call(
                weights, state, x, padding_mask=mask, training=False
            )
            return y

        return run
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(
            lambda x, mask: layer(x, padding_mask=mask, training=False),
            **options,
        )
    import torch

    return torch.compile(
        lambda x, mask: layer(x, padding_mask=mask, training=False),
        backend="aot_eager",
    )


@pytest.mark.parametrize("router,dispatch", PAIRS)
def test_eager_equals_compiled(router, dispatch, rng):
    if BACKEND == "torch" and (router, dispatch) != ("switch", "gather"):
        pytest.skip("tracing takes half a minute; one pair is enough")
    spec = reference.Spec(E, router=router, k=2, dispatch=dispatch)
    layer = bridge.make_layer(spec, D, F)
    x = rng.normal(size=(B, T, D)).astype("float32")
    mask = np.array([[1] * T, [1] * 5 + [0] * 3], "int32")
    eager = bridge.numpy(layer(x, padding_mask=mask, training=False))
    options = [{}]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        spec = (tf.TensorSpec((None, None, D)), tf.TensorSpec((None, None)))
        options = [{}, {"jit_compile": True}, {"input_signature": spec}]
        mask = mask.astype("float32")
    for option in options:
        run = compiled(layer, **option)
        y = run(ops.convert_to_tensor(x), ops.convert_to_tensor(mask))
        np.testing.assert_allclose(
            bridge.numpy(y), eager, rtol=1e-5, atol=1e-6, err_msg=str(option)
        )


@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_lowers_the_loss(jit_compile, router, dispatch, rng):
    """In a Sequential model, one compiled training step."""
    if jit_compile and BACKEND == "torch":
        pytest.skip("Keras on torch compiles with a C++ compiler at run time")
    if not jit_compile and BACKEND == "jax" and dispatch != "gather":
        pytest.skip("a training step in eager JAX is slow; one is enough")
    model = keras.Sequential(
        [
            keras.Input((T, D)),
            keras_switch.SwitchLayer(
                E, F, router=router, dispatch=dispatch, init_scale=1.0
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", "mse", jit_compile=jit_compile)
    model.optimizer.learning_rate = 0.02
    x = rng.normal(size=(32, T, D)).astype("float32")
    y = np.maximum(x[..., :1], 0) + x[..., 1:2]
    loss = model.fit(x, y, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert loss[-1] < 0.7 * loss[0]


@pytest.mark.parametrize(
    "router,dispatch,group_size",
    [
        *[(*pair, None) for pair in PAIRS],
        ("switch", "gather", 5),
        ("switch", "dropless", 5),
        ("expert_choice", "einsum", 5),
    ],
)
def test_unknown_batch_and_length(group_size, router, dispatch, rng):
    """A functional graph; then `predict` and `fit` on two lengths."""
    spec = reference.Spec(
        E, router=router, k=2, dispatch=dispatch, group_size=group_size
    )
    layer = bridge.make_layer(spec, D, F)
    x = keras.Input((None, D))
    mask = keras.Input((None,), dtype="int32")
    y = layer(x, padding_mask=mask)
    assert y.shape == (None, None, D)
    model = keras.Model([x, mask], y)
    model.compile("sgd", "mse")
    for batch, length in ((3, 4), (2, 7)):
        value = rng.normal(size=(batch, length, D)).astype("float32")
        real = rng.integers(0, 2, size=(batch, length)).astype("int32")
        wanted = bridge.run_oracle(spec, layer, value, real).y
        got = model.predict([value, real], verbose=0)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    model.fit([value, real], value, verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="has no unknown shapes")
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1), (2, 5)])
@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("router,dispatch", PAIRS)
def test_a_graph_for_every_shape(router, dispatch, group_size, shape, rng):
    """Also for an empty batch, which only the running graph can tell."""
    import tensorflow as tf

    spec = reference.Spec(
        E, router=router, k=2, dispatch=dispatch, group_size=group_size
    )
    layer = bridge.make_layer(spec, D, F)
    signature = [tf.TensorSpec((None, None, D))]
    x = rng.normal(size=(*shape, D)).astype("float32")
    for training in (True, False):
        run = tf.function(
            lambda x, training=training: layer(x, training=training),
            input_signature=signature,
            autograph=False,
        )
        spec.training = training
        wanted = bridge.run_oracle(spec, layer, x).y
        np.testing.assert_allclose(run(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("router,edges", [("switch", 1), ("top_k", 2)])
def test_return_routing_and_its_spec(router, edges):
    layer = keras_switch.SwitchLayer(E, F, router=router)
    x = keras.KerasTensor((B, T, D))
    y = layer.compute_output_spec(x)
    assert (y.shape, y.dtype) == ((B, T, D), "float32")
    y, routes = layer.compute_output_spec(x, return_routing=True)
    assert isinstance(routes, keras_switch.RouterIndices)
    real_y, real = layer(np.zeros((B, T, D), "float32"), return_routing=True)
    assert tuple(real_y.shape) == y.shape
    for spec, value in zip(routes, real, strict=True):
        assert tuple(value.shape) == (B, edges * T)
        assert spec.shape in ((None, None), (B, edges * T))
        assert keras.backend.standardize_dtype(value.dtype) == spec.dtype
    unknown = keras.KerasTensor((None, None, D))
    y, routes = layer.compute_output_spec(unknown, return_routing=True)
    assert y.shape == (None, None, D)
    assert all(len(spec.shape) == 2 for spec in routes)


def test_return_routing_in_a_functional_model(rng):
    layer = keras_switch.SwitchLayer(E, F)
    x = keras.Input((None, D))
    y, routes = layer(x, return_routing=True)
    model = keras.Model(x, [y, routes.expert_index, routes.gate])
    value = rng.normal(size=(B, T, D)).astype("float32")
    _, expert_index, gate = model.predict(value, verbose=0)
    probs = value @ bridge.weights(layer)["kernel"]
    np.testing.assert_array_equal(expert_index, probs.argmax(-1))
    assert gate.shape == (B, T)


@pytest.mark.parametrize(
    "router,dispatch,policy",
    [
        *[(*pair, "float16") for pair in PAIRS],
        *[(*pair, "mixed_bfloat16") for pair in PAIRS],
        ("switch", "gather", "bfloat16"),
        ("switch", "gather", "mixed_float16"),
    ],
)
def test_dtype_policies(router, dispatch, policy, rng, gradients):
    """The router stays in float32: its gates are exact to 1e-6."""
    kwargs = {"router": router, "k": 2, "dispatch": dispatch}
    spec = reference.Spec(E, training=True, **kwargs)
    layer = bridge.make_layer(spec, D, F, dtype=policy)
    compute = policy.removeprefix("mixed_")
    assert layer.router.kernel.dtype == "float32"
    variable = "float32" if "mixed" in policy else compute
    assert bridge.variables(layer)["wi"].dtype == variable
    x = ops.cast(rng.normal(size=(B, T, D)), compute)
    y, routes = layer(x, training=True, return_routing=True)
    assert keras.backend.standardize_dtype(y.dtype) == compute
    x = bridge.numpy(ops.cast(x, "float32"))
    weights = {
        name: bridge.numpy(ops.cast(v, "float32"))
        for name, v in bridge.variables(layer).items()
    }
    wanted = reference.switch_layer(spec, x, weights)
    bridge.assert_edges_equal(routes, wanted.edges, E)
    bridge.assert_statistics_equal(layer, wanted)
    gates = np.array([[e.gate for e in group] for group in wanted.edges])
    np.testing.assert_allclose(bridge.numpy(routes.gate), gates, rtol=2e-6)
    got = bridge.numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(got, wanted.y, rtol=0.03, atol=0.03)
    for loss in layer.losses:
        assert keras.backend.standardize_dtype(loss.dtype) == "float32"

    def objective(x):
        y = layer(ops.cast(x, compute), training=True)
        return ops.sum(ops.cast(y, "float32") ** 2) + sum(layer.losses)

    _, (dx,), (dk,) = gradients(objective, [x], [layer.router.kernel])
    assert np.isfinite(dx).all() and np.isfinite(dk).all()
    assert np.abs(dk).max() > 1e-4


def test_float16_survives_large_inputs():
    layer = keras_switch.SwitchLayer(E, F, dtype="mixed_float16")
    x = 3e4 * np.ones((1, T, D), "float32")
    y = layer(x, training=True)
    assert np.isfinite(bridge.numpy(ops.cast(y, "float32"))).all()
    for loss in layer.losses:
        assert np.isfinite(bridge.numpy(loss))


OPTIONS = {
    "router": "top_k",
    "dispatch": "einsum",
    "capacity_factor": 1.5,
    "eval_capacity_factor": 2.0,
    "min_capacity": 2,
    "capacity": 3,
    "group_size": 16,
    "activation": "gated-gelu",
    "dropout": 0.1,
    "expert_dropout": 0.3,
    "init_scale": 0.2,
    "name": "moe",
    "dtype": "mixed_bfloat16",
}


@pytest.mark.parametrize("router", [*ROUTERS, "instance", "config"])
def test_config_round_trip(router):
    options = {**OPTIONS, "router": router}
    if router in ("instance", "config"):
        options["router"] = keras_switch.TopKRouter(
            k=3, second_policy="threshold", z_loss_weight=0.5
        )
    if router == "config":
        options["router"] = keras.saving.serialize_keras_object(
            options["router"]
        )
    layer = keras_switch.SwitchLayer(E, F, **options)
    config = layer.get_config()
    again = keras_switch.SwitchLayer.from_config(config)
    assert again.get_config() == config
    for name in OPTIONS:
        if name not in ("router", "dtype"):
            assert config[name] == OPTIONS[name]
    assert type(again.router) is type(layer.router)
    assert again.router.get_config() == layer.router.get_config()
    if router in ("instance", "config"):
        assert (again.router.k, again.router.z_loss_weight) == (3, 0.5)
    again.build((None, None, D))
    shapes = {v.path: v.shape for v in again.weights}
    layer.build((None, None, D))
    assert shapes == {v.path: v.shape for v in layer.weights}
    assert len(shapes) == 5  # router, wi_0, wi_1, wo and the statistics


@pytest.mark.parametrize("router", ROUTERS)
def test_saved_model_loads_the_same(router, rng, tmp_path):
    x = keras.Input((None, D))
    mask = keras.Input((None,), dtype="int32")
    layer = keras_switch.SwitchLayer(
        E, F, router=quiet_router(router), activation="gated-silu"
    )
    model = keras.Model([x, mask], layer(x, padding_mask=mask))
    bridge.fill(layer)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    inputs = [
        rng.normal(size=(B, T, D)).astype("float32"),
        rng.integers(0, 2, size=(B, T)).astype("int32"),
    ]
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )


def test_statistics_are_not_in_weight_files(rng, tmp_path):
    """Loading old weights does not bring back old statistics."""
    model = keras.Sequential(
        [keras.Input((T, D)), keras_switch.SwitchLayer(E, F, name="moe")]
    )
    layer = model.get_layer("moe")
    model(rng.normal(size=(B, T, D)).astype("float32"))
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    layer.routing_stats.value.assign(ops.full((8,), -5.0))
    kernel = bridge.numpy(layer.router.kernel).copy()
    layer.router.kernel.assign(kernel * 0)
    model.load_weights(path)
    np.testing.assert_array_equal(bridge.numpy(layer.router.kernel), kernel)
    stats = bridge.numpy(layer.routing_stats.value)
    np.testing.assert_array_equal(stats, np.full((8,), -5.0))
    import h5py

    with h5py.File(path) as file:
        shapes = []
        file.visititems(lambda _, v: shapes.append(getattr(v, "shape", None)))
    assert (8,) not in shapes


def test_statistics_are_there_after_fit(rng):
    model = keras.Sequential(
        [keras.Input((T, D)), keras_switch.SwitchLayer(E, F, name="moe")]
    )
    model.compile("sgd", "mse")
    x = rng.normal(size=(4, T, D)).astype("float32")
    model.fit(x, x, batch_size=4, verbose=0)
    stats = bridge.numpy(model.get_layer("moe").routing_stats.value)
    assert stats[-1] == 4 * T
    named = dict(zip((*STATISTICS, "tokens"), stats, strict=True))
    del named["dropped_fraction"], named["dead_expert_fraction"]
    assert min(named.values()) > 0
    assert not model.get_layer("moe").routing_stats.value.trainable


def test_numpy_scalars_are_numbers(rng):
    layer = keras_switch.SwitchLayer(
        np.int64(4),
        np.int64(8),
        group_size=np.int64(4),
        capacity=np.int64(2),
        capacity_factor=np.float32(1.25),
        dropout=np.float64(0.1),
    )
    assert layer(rng.normal(size=(2, 4, 6)), training=True).shape == (2, 4, 6)
    json.dumps(layer.get_config())


def test_over_time_of_unknown_length(rng):
    inputs = keras.Input((None, None, 6))
    layer = keras.layers.TimeDistributed(keras_switch.SwitchLayer(2, 8))
    model = keras.Model(inputs, layer(inputs))
    x = rng.normal(size=(2, 3, 4, 6)).astype("float32")
    each = np.stack([bridge.numpy(layer.layer(x[:, i])) for i in range(3)], 1)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), each, rtol=1e-5, atol=1e-6
    )
