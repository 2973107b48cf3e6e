"""The state of an optimizer, from a dense model to a sparse one."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch import TopKRouter
from keras_switch.convert.upcycle import upcycle, upcycle_optimizer
from keras_switch.optimizers import Adafactor
from tests.models import tiny

DENSE = {
    "num_experts": None,
    "encoder_sparse_step": 0,
    "decoder_sparse_step": 0,
}
MAKE = {
    "adam": lambda **k: keras.optimizers.Adam(1e-2, **k),
    "adamw": lambda **k: keras.optimizers.AdamW(1e-2, **k),
    "momentum": lambda **k: keras.optimizers.SGD(1e-2, momentum=0.9, **k),
    "adafactor": lambda **k: Adafactor(1e-2, beta_1=0.9, **k),
    "factored": lambda **k: Adafactor(1e-2, min_dim_to_factor=4, **k),
    "scaled": lambda **k: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-2, **k), initial_scale=8.0
    ),
}


def trained(optimizer, steps=3, **arguments):
    """A dense model whose optimizer has a made-up state."""
    dense = tiny.lm(**DENSE, **arguments)
    dense.compile(optimizer)
    optimizer.build(dense.trainable_variables)
    rng = np.random.default_rng(4)
    for slot in optimizer.variables:
        name = slot.path.rpartition("/")[2]
        if name == "iteration":
            slot.assign(steps)
        elif name not in ("learning_rate", "step_counter"):
            slot.assign(rng.uniform(0.5, 1.5, slot.shape))
    return dense


def compiled(dense, optimizer, num_experts=3):
    sparse = upcycle(dense, num_experts)
    sparse.compile(optimizer)
    optimizer.build(sparse.trainable_variables)
    return sparse


def state(optimizer):
    return {
        v.path.partition("/")[2]: ops.convert_to_numpy(v)
        for v in optimizer.variables
    }


@pytest.mark.parametrize("name", MAKE)
def test_state(name):
    dense = trained(MAKE[name]())
    sparse = compiled(dense, MAKE[name]())
    fresh = state(sparse.optimizer)
    upcycle_optimizer(dense, sparse)
    before, after = state(dense.optimizer), state(sparse.optimizer)
    copied = repeated = routers = 0
    for path, value in after.items():
        if "_router_" in path:
            routers += 1
            np.testing.assert_array_equal(value, fresh[path])
            assert not value.any()
        elif "_experts_" in path:
            repeated += 1
            source = before[path.replace("_experts_", "_")]
            assert value.ndim == source.ndim + 1 and source.any()
            for copy in value:
                np.testing.assert_array_equal(copy, source)
        else:
            copied += 1
            np.testing.assert_array_equal(value, before[path])
    assert sparse.optimizer.iterations == 3
    assert repeated == 4 * (1 if name == "momentum" else 2)
    assert routers >= 2 and copied > 30


def test_shapes_without_an_axis():
    dense = trained(MAKE["factored"]())
    sparse = compiled(dense, MAKE["factored"]())
    upcycle_optimizer(dense.optimizer, sparse.optimizer)
    after = state(sparse.optimizer)
    prefix = "decoder_layer_1_feed_forward_experts_wi_kernel"
    assert after[f"{prefix}_row"].shape == (3, 16)
    assert after[f"{prefix}_column"].shape == (3, 32)


def test_learning_rate_stays_that_of_the_new_optimizer():
    dense = trained(keras.optimizers.Adam(1e-2))
    sparse = compiled(dense, keras.optimizers.Adam(1e-3))
    upcycle_optimizer(dense, sparse)
    assert float(sparse.optimizer.learning_rate) == pytest.approx(1e-3)


def test_optimizer_as_an_argument():
    dense = trained(MAKE["adam"]())
    optimizer = MAKE["adam"]()
    upcycle(dense, 3, optimizer=optimizer)
    other = compiled(dense, MAKE["adam"]())
    upcycle_optimizer(dense, other)
    wanted = state(other.optimizer)
    for path, value in state(optimizer).items():
        np.testing.assert_array_equal(value, wanted[path])


X = tiny.inputs(np.random.default_rng(3))
# As `fit` compiles, but without XLA for TensorFlow, which takes longer.
JIT = "auto" if keras.backend.backend() == "jax" else False


def train(model):
    """One step, on the same batch for every model."""
    model.compile(model.optimizer, jit_compile=JIT)
    targets = np.roll(X["decoder_token_ids"], -1, axis=1)
    model.train_on_batch(X, targets, X["decoder_padding_mask"])
    return {v.path: ops.convert_to_numpy(v) for v in model.trainable_variables}


@pytest.fixture(scope="module")
def after_a_step():
    """Weights a step on: of the sparse model with the state and without, and
    of the dense one, trained last."""
    keras.utils.set_random_seed(7)
    dense = trained(MAKE["adam"](), num_encoder_layers=1, num_decoder_layers=1)
    router = TopKRouter(
        k=2,
        second_policy="all",
        exploration="argmax",
        load_balancing_loss_weight=0.0,
    )
    weights = []
    for keep in (True, False):
        sparse = upcycle(dense, 4, 1, 1, router=router, dispatch="dropless")
        sparse.compile(MAKE["adam"]())
        if keep:
            upcycle_optimizer(dense, sparse)
        weights.append(train(sparse))
    return *weights, train(dense)


def test_training_goes_on_as_if_nothing_had_happened(after_a_step):
    """With gates that sum to 1 a step moves shared weights as before."""
    kept, _, wanted = after_a_step
    shared = set(kept) & set(wanted)
    assert len(shared) == len(wanted) - 4
    for path in shared:
        np.testing.assert_allclose(kept[path], wanted[path], atol=2e-5)


def test_a_dropped_state_is_noticed(after_a_step):
    _, dropped, wanted = after_a_step
    shared = set(dropped) & set(wanted)
    changes = [np.abs(dropped[p] - wanted[p]).max() for p in shared]
    assert max(changes) > 1e-3


def stepped():
    optimizer = keras.optimizers.Adam(1e-2)
    sparse = compiled(trained(keras.optimizers.Adam(1e-2)), optimizer)
    optimizer.apply([v * 0.0 for v in sparse.trainable_variables])
    return sparse


@pytest.mark.parametrize(
    "source, target, message",
    [
        (MAKE["adam"], MAKE["momentum"], "the dense model's class, Adam; rec"),
        (MAKE["scaled"], MAKE["adam"], r"LossScaleOptimizer\(Adam\); rec"),
        (MAKE["adafactor"], MAKE["factored"], "that only one of them has"),
        (
            lambda: keras.optimizers.Adam(1e-2, amsgrad=True),
            MAKE["adam"],
            "that only one of them has",
        ),
        (
            keras.optimizers.Nadam,
            keras.optimizers.Nadam,
            "that only one of them has, among them variable",
        ),
        (
            keras.optimizers.Adafactor,
            keras.optimizers.Adafactor,
            "must name its slots after the weights; received Adafactor",
        ),
        (
            lambda: keras.optimizers.Adam(1e-2, use_ema=True),
            lambda: keras.optimizers.Adam(1e-2, use_ema=True),
            "use_ema=False",
        ),
        (
            # One plan for all experts, which are the largest axis.
            MAKE["factored"],
            lambda: Adafactor(1e-2, min_dim_to_factor=4, expert_pattern=None),
            r"wi_kernel_row must be \(32,\), to fill .* received \(16,\)",
        ),
    ],
)
def test_refused_slots(source, target, message):
    dense = trained(source())
    sparse = compiled(dense, target(), num_experts=40)
    fresh = state(sparse.optimizer)
    with pytest.raises(ValueError, match=message):
        upcycle_optimizer(dense, sparse)
    for path, value in state(sparse.optimizer).items():
        np.testing.assert_array_equal(value, fresh[path])


def test_refused_owners():
    dense = trained(MAKE["adam"]())
    unbuilt = keras.optimizers.Adam(1e-2)
    with pytest.raises(ValueError, match="sparse must have an optimizer that"):
        upcycle_optimizer(dense, unbuilt)
    with pytest.raises(ValueError, match="dense must have an optimizer that"):
        upcycle_optimizer(unbuilt, dense)
    with pytest.raises(ValueError, match="compiled model or an optimizer"):
        upcycle_optimizer(dense.backbone, dense)
    with pytest.raises(ValueError, match="has not made a step; received one"):
        upcycle_optimizer(dense, stepped())
