import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers.routing_stats import STATISTICS
from keras_switch.models import SwitchSeq2SeqLM
from keras_switch.models.routing_metrics import RoutingMetrics
from tests.models import tiny

# One layer in each stack, both sparse: most of the time goes into compiling.
SMALL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
}


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(1)
    return tiny.lm(**SMALL)


@pytest.fixture(scope="module")
def text_lm():
    keras.utils.set_random_seed(1)
    return tiny.lm(preprocessor=tiny.preprocessor(), **SMALL)


class ForcedSampler(keras_hub.samplers.Sampler):
    """Walks along the prompt and returns the logits of every step."""

    def __call__(self, next, prompt, cache=None, index=0, **kwargs):
        steps = []
        for index in range(1, prompt.shape[1] + 1):
            logits, _, cache = next(prompt, cache, index)
            steps.append(logits)
        return ops.stack(steps, axis=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {
            "router": "top_k",
            "tie_embedding_weights": False,
            "activation": "gated-gelu",
            "decoder_sparse_step": 1,
            "num_encoder_layers": 1,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 9,
        },
    ],
)
def test_cached_decoding_equals_a_full_pass(arguments, rng):
    lm = tiny.lm(**arguments)
    x = tiny.inputs(rng, batch_size=3)
    x["decoder_padding_mask"][:] = 1
    whole = lm.predict_on_batch(x)
    lm.compile(sampler=ForcedSampler())
    # The first row's prompt has one token, the last one's three.
    prompt = np.arange(5) < np.array([[1], [2], [3]])
    steps = lm.generate(
        {**x, "decoder_padding_mask": prompt.astype("int32")},
        stop_token_ids=None,
    )["decoder_token_ids"]
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(steps, whole, atol=1e-5)


def test_greedy_is_the_argmax_of_full_passes(lm, rng):
    lm.compile(sampler="greedy")
    x = tiny.inputs(rng)
    x["decoder_padding_mask"][:] = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    result = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    ids = x["decoder_token_ids"].copy()
    full = {**x, "decoder_padding_mask": np.ones_like(ids)}
    for t in range(1, 5):
        full["decoder_token_ids"] = ids
        best = np.argmax(lm.predict_on_batch(full)[:, t - 1], axis=-1)
        prompt = x["decoder_padding_mask"][:, t]
        ids[:, t] = np.where(prompt, ids[:, t], best)
    np.testing.assert_array_equal(result, ids)


@pytest.mark.parametrize(
    "sampler", ["beam", "top_k", "top_p", "random", "contrastive"]
)
def test_every_sampler_keeps_the_prompt_and_stays_in_the_vocabulary(
    lm, sampler, rng
):
    lm.compile(sampler=sampler)
    x = tiny.inputs(rng)
    x["decoder_padding_mask"][:] = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    ids = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    assert ids.shape == (2, 5)
    np.testing.assert_array_equal(ids[1, :3], x["decoder_token_ids"][1, :3])
    assert ((0 <= ids) & (ids < tiny.VOCABULARY)).all()


def test_the_mask_of_a_result_ends_with_the_stop_token(lm, rng):
    lm.compile(sampler="greedy")
    x = tiny.inputs(rng)
    x["decoder_padding_mask"][:] = [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    free = lm.generate(x, stop_token_ids=None)
    assert free["decoder_padding_mask"].all()
    stop = int(free["decoder_token_ids"][0, 2])
    result = lm.generate(x, stop_token_ids=(stop,))
    ids, mask = result["decoder_token_ids"], result["decoder_padding_mask"]
    for row, prompt in ((0, 1), (1, 3)):
        stops = np.flatnonzero(ids[row, prompt:] == stop)
        length = prompt + stops[0] + 1 if len(stops) else 5
        assert mask[row].tolist() == [i < length for i in range(5)]


def test_generate_from_strings(text_lm):
    text_lm.compile(sampler="greedy")
    one = text_lm.generate("the <extra_id_0> walks", max_length=6)
    many = text_lm.generate(["the <extra_id_0> walks"] * 2, max_length=6)
    assert isinstance(one, str)
    assert many == [one, one]
    prompt = {"encoder_text": "the <extra_id_0> walks", "decoder_text": "the"}
    whole = text_lm.generate(prompt, max_length=6)
    assert whole.startswith("the")
    rest = text_lm.generate(prompt, max_length=6, strip_prompt=True)
    assert prompt["encoder_text"] == "the <extra_id_0> walks"
    assert whole.replace(" ", "") == "the" + rest.replace(" ", "")
    assert text_lm.generate(prompt, max_length=6) == whole


@pytest.mark.parametrize("max_length", [0, -5, 2.5])
def test_max_length_out_of_range(text_lm, max_length):
    with pytest.raises(ValueError, match="max_length must be an int at least"):
        text_lm.generate("the", max_length=max_length)


def test_fit_on_strings_learns_and_logs_every_router(text_lm):
    text_lm.compile(optimizer=keras.optimizers.Adam(0.01))
    data = {
        "encoder_text": ["the <extra_id_0> walks", "A <extra_id_0> dog"] * 4,
        "decoder_text": ["<extra_id_0> man", "<extra_id_0> small brown"] * 4,
    }
    history = text_lm.fit(data, batch_size=4, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    logged = {name for name in history if "/" in name}
    layers = ("encoder_layer_0", "decoder_layer_0")
    assert logged == {f"{n}/{s}" for n in layers for s in STATISTICS}
    assert 0 < history["encoder_layer_0/router_confidence"][0] <= 1
    assert 0 < history["decoder_layer_0/load_balancing_loss"][0] <= 4
    results = text_lm.evaluate(data, batch_size=4, verbose=0, return_dict=True)
    assert logged < set(results)
    # Evaluation is dropless.
    assert results["encoder_layer_0/dropped_fraction"] == 0


def test_the_loss_is_the_mean_over_target_tokens(lm, rng):
    lm.compile(routing_metrics=None)
    x = tiny.inputs(rng)
    y = rng.integers(0, tiny.VOCABULARY, (2, 5)).astype("int32")
    weights = x["decoder_padding_mask"].astype("float32")
    logits = lm.predict_on_batch(x)
    assert logits.dtype == np.float32
    logits = logits.astype("float64")
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    wanted = ((log_z - chosen) * weights).sum() / weights.sum()
    loss = lm.test_on_batch(x, y, weights, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_the_z_loss_is_added_in_training_only(lm, rng):
    logits = rng.normal(size=(2, 3, tiny.VOCABULARY)).astype("float32")
    y, weights = np.ones((2, 3), "int32"), np.array([[1.0, 1, 0], [1, 0, 0]])

    def loss(z_loss_weight, training):
        lm.compile(routing_metrics=None, z_loss_weight=z_loss_weight)
        tensors = [ops.convert_to_tensor(a) for a in (y, logits, weights)]
        return float(lm.compute_loss(None, *tensors, training=training))

    squares = np.log(np.exp(logits.astype("float64")).sum(-1)) ** 2
    wanted = 0.5 * (squares * weights).sum() / weights.sum()
    np.testing.assert_allclose(loss(0.5, True) - loss(0, True), wanted, 1e-5)
    assert loss(0.5, False) == loss(0, False)


def test_which_routing_metrics_are_logged(lm):
    lm.compile(routing_metrics="mean")
    assert routing_names(lm) == {f"routing/{s}" for s in STATISTICS}
    lm.compile(routing_metrics=None)
    assert routing_names(lm) == set()
    # Compiling again does not pile up metrics.
    lm.compile(routing_metrics="layers")
    layers = ("encoder_layer_0", "decoder_layer_0")
    wanted = {f"{n}/{s}" for n in layers for s in STATISTICS}
    assert routing_names(lm) == wanted
    with pytest.raises(ValueError, match="routing_metrics must be one of"):
        lm.compile(routing_metrics="all")


def routing_names(lm):
    metrics = [m for m in lm.metrics if isinstance(m, RoutingMetrics)]
    names = [name for metric in metrics for name in metric.result()]
    assert len(names) == len(set(names))
    return set(names)


def test_a_dense_model_has_no_routing_metrics():
    lm = tiny.lm(encoder_sparse_step=0, decoder_sparse_step=0)
    assert routing_names(lm) == set()


def test_the_default_is_what_t5_is_fine_tuned_with():
    lm = tiny.lm(**SMALL)
    assert type(lm.optimizer) is keras_switch.optimizers.Adafactor
    np.testing.assert_allclose(float(lm.optimizer.learning_rate), 1e-3)
    assert isinstance(lm.sampler, keras_hub.samplers.GreedySampler)
    assert lm.loss.reduction == "mean_with_sample_weight"


def test_tied_logits_are_scaled(lm, rng):
    x = tiny.inputs(rng)
    hidden = lm.backbone.predict_on_batch(x)["decoder_sequence_output"]
    table = ops.convert_to_numpy(lm.backbone.token_embedding.embeddings)
    logits = lm.predict_on_batch(x)
    np.testing.assert_allclose(logits, hidden @ table.T / 4, atol=1e-5)


def test_float16_logits_are_float32_and_finite(rng):
    lm = tiny.lm(**SMALL, dtype="float16")
    logits = lm.predict_on_batch(tiny.inputs(rng))
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_lora_adapts_queries_and_values(rng):
    lm = tiny.lm(**SMALL)
    lm.backbone.enable_lora(2)
    adapted = [w.path for w in lm.trainable_weights]
    attentions = (
        "encoder_layer_0/self_attention",
        "decoder_layer_0/self_attention",
        "decoder_layer_0/cross_attention",
    )
    assert sorted(adapted) == sorted(
        f"{attention}/{dense}/lora_kernel_{half}"
        for attention in attentions
        for dense in ("query", "value")
        for half in "ab"
    )


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="SwitchSeq2SeqLM has no argument x"):
        SwitchSeq2SeqLM(tiny.backbone(**SMALL), x=1)


def test_a_saved_model_keeps_its_optimizer_and_how_it_was_compiled(
    rng, tmp_path
):
    lm = tiny.lm(**SMALL)
    lm.compile(
        keras.optimizers.Adam(0.5),
        sampler=keras_hub.samplers.TopKSampler(k=3),
        routing_metrics="mean",
        z_loss_weight=0.25,
    )
    x = tiny.inputs(rng)
    lm.train_on_batch(x, x["decoder_token_ids"])
    path = str(tmp_path / "lm.keras")
    lm.save(path)
    again = keras.saving.load_model(path)
    assert type(again) is SwitchSeq2SeqLM
    assert again.sampler.k == 3
    assert again.get_compile_config() == lm.get_compile_config()
    assert int(again.optimizer.iterations) == 1
    for old, new in zip(
        lm.optimizer.variables, again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        )
    for old, new in zip(
        lm.trainable_weights, again.trainable_weights, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(old), ops.convert_to_numpy(new)
        )
