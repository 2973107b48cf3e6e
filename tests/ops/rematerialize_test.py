import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.callbacks.stability_guard import first_non_finite_layer
from keras_switch.layers import FeedForward, TransformerLayer
from keras_switch.ops import rematerialize as remat
from tests.mesh import one_device
from tests.models import tiny

BACKEND = keras.backend.backend()


def trained(rng, **arguments):
    """Logs of steps and all variables after them.

    Dropout, jitter, both routers' losses, statistics, and a bias that a step
    writes.
    """
    keras.utils.set_random_seed(3)
    lm = tiny.lm(
        dropout=0.2,
        expert_dropout=0.4,
        router=keras_switch.SwitchRouter(
            load_balancing_loss_weight=0.5, z_loss_weight=0.1
        ),
        decoder_router="loss_free",
        num_encoder_layers=2,
        num_decoder_layers=1,
        decoder_sparse_step=1,
        **arguments,
    )
    jit_compile = BACKEND == "jax"
    lm.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    x = tiny.inputs(rng, batch_size=4)
    y, weight = x["decoder_token_ids"], x["decoder_padding_mask"]
    logs = [
        lm.train_on_batch(x, y, sample_weight=weight, return_dict=True)
        for _ in range(2)
    ]
    variables = {v.path: ops.convert_to_numpy(v) for v in lm.variables}
    return logs, variables, lm


def test_training_is_as_without():
    """Losses, statistics, weights, and the states of random generators."""
    kept, wanted, _ = trained(np.random.default_rng(0))
    logs, found, _ = trained(np.random.default_rng(0), rematerialize=True)
    for one, other in zip(kept, logs, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-6)
    assert any("seed" in path for path in wanted)
    for (path, one), other in zip(wanted.items(), found.values(), strict=True):
        np.testing.assert_allclose(
            other, one, rtol=1e-4, atol=1e-5, err_msg=path
        )


def calls(run, monkeypatch):
    """How often the blocks of a model are run."""
    count, block = [], TransformerLayer._block

    def counted(self, *args, **kwargs):
        count.append(self.name)
        return block(self, *args, **kwargs)

    monkeypatch.setattr(TransformerLayer, "_block", counted)
    run()
    return len(count)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX calls no function twice")
def test_blocks_are_run_twice(monkeypatch, rng):
    x = rng.normal(size=(2, 3, 8)).astype("float32")
    block = stack(1, True)[0]

    def run():
        with monkeypatch.context() as patch:
            return calls(lambda: gradient(block, x), patch)

    assert run() == 2
    with remat.everything_kept():
        assert run() == 1
    block.rematerialize = False
    assert run() == 1


def gradient(block, x):
    if BACKEND == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        block(x, training=True).sum().backward()
        return x.grad
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(block(x, training=True))
    return tape.gradient(y, x)


def stack(layers, rematerialize, width=8):
    blocks = [
        TransformerLayer(
            FeedForward(4 * width), 2, 4, rematerialize=rematerialize
        )
        for _ in range(layers)
    ]
    for block in blocks:
        block.build((None, None, width))
    return blocks


@pytest.mark.skipif(BACKEND != "jax", reason="JAX says what a program takes")
def test_a_step_takes_less_memory():
    import jax

    def temporary(rematerialize):
        blocks = stack(6, rematerialize, width=16)
        values = [[v.value for v in block.variables] for block in blocks]

        def loss(values, x):
            for block, own in zip(blocks, values, strict=True):
                state = list(zip(block.variables, own, strict=True))
                with keras.StatelessScope(state):
                    x = block(x, training=True)
            return ops.sum(x)

        x = np.ones((4, 64, 16), "float32")
        program = jax.jit(jax.grad(loss, allow_int=True))
        compiled = program.lower(values, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 0.5 * temporary(False)


def test_the_layer_without_numbers_is_still_found(rng):
    lm = tiny.lm(rematerialize=True)
    layer = lm.backbone.encoder_transformer_layers[1]
    scale = layer.feed_forward_norm.trainable_weights[0]
    scale.assign(np.full(scale.shape, np.nan))
    found = first_non_finite_layer(lm, tiny.inputs(rng))
    assert found.endswith("encoder_layer_1/feed_forward_norm")


def test_it_is_a_part_of_the_config():
    backbone = tiny.causal_backbone(rematerialize=True)
    again = type(backbone).from_config(backbone.get_config())
    assert again.transformer_layers[0].get_config()["rematerialize"]
    with pytest.raises(ValueError, match="rematerialize must be"):
        tiny.backbone(rematerialize="full")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of DTensor")
def test_a_mesh_of_tensorflow_is_refused(rng):
    block = stack(1, True)[0]
    x = rng.normal(size=(2, 3, 8)).astype("float32")
    with one_device.spread():
        with pytest.raises(RuntimeError, match="rematerialize over a mesh"):
            block(x, training=True)
