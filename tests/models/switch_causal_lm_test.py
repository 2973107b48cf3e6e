import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.models import SwitchCausalLM
from tests import sparing
from tests.models import tiny

PROMPTS = np.array([[1], [3], [2]])


@pytest.fixture(
    scope="module", params=sparing.cases(tiny.FAMILIES, ("mixtral",))
)
def any_lm(request):
    return tiny.causal_lm(request.param)


@pytest.fixture(scope="module")
def lm():
    return tiny.causal_lm()


@pytest.fixture(scope="module")
def text_lm():
    return tiny.causal_lm(preprocessor=tiny.causal_preprocessor())


class ForcedSampler(keras_hub.samplers.Sampler):
    """Walks along the prompt and returns the logits of every step."""

    def __call__(self, next, prompt, cache=None, index=0, **kwargs):
        steps = []
        for index in range(1, prompt.shape[1] + 1):
            logits, _, cache = next(prompt, cache, index)
            steps.append(logits)
        return ops.stack(steps, axis=1)


def prompts(rng, length=6):
    """Prompts of unequal lengths in rows of ids."""
    ids = rng.integers(3, tiny.VOCABULARY, (3, length)).astype("int32")
    mask = (np.arange(length) < PROMPTS).astype("int32")
    return {"token_ids": ids, "padding_mask": mask}


def test_cached_decoding_equals_a_full_pass(any_lm, rng):
    x = prompts(rng)
    whole = any_lm.predict_on_batch(
        {**x, "padding_mask": np.ones_like(x["token_ids"])}
    )
    any_lm.compile(sampler=ForcedSampler())
    steps = any_lm.generate(x, stop_token_ids=None)["token_ids"]
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(steps, whole, atol=2e-5)


def test_layers_are_told_the_tokens(rng):
    """A hash router goes by them, at every step of decoding."""
    lm, x = tiny.causal_lm(router="hash"), prompts(rng)
    whole = lm.predict_on_batch(
        {**x, "padding_mask": np.ones_like(x["token_ids"])}
    )
    lm.compile(sampler=ForcedSampler())
    steps = lm.generate(x, stop_token_ids=None)["token_ids"]
    np.testing.assert_allclose(steps, whole, atol=2e-5)


def greedy_by_hand(lm, x):
    """Greedy search by full passes."""
    ids = x["token_ids"].copy()
    for t in range(1, ids.shape[1]):
        full = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        best = np.argmax(lm.predict_on_batch(full)[:, t - 1], axis=-1)
        ids[:, t] = np.where(x["padding_mask"][:, t], ids[:, t], best)
    return ids


def test_greedy_is_the_argmax_of_full_passes(any_lm, rng):
    any_lm.compile(sampler="greedy")
    x = prompts(rng)
    result = any_lm.generate(x, stop_token_ids=None)
    np.testing.assert_array_equal(
        result["token_ids"], greedy_by_hand(any_lm, x)
    )
    assert result["padding_mask"].all()
    # A row does not depend on the rest of its batch.
    alone = {name: value[1:2] for name, value in x.items()}
    alone = any_lm.generate(alone, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(alone[0], result["token_ids"][1])


@pytest.mark.parametrize(
    "sampler", ["beam", "top_k", "top_p", "random", "contrastive"]
)
def test_every_sampler_keeps_the_prompt_and_stays_in_the_vocabulary(
    lm, sampler, rng
):
    lm.compile(sampler=sampler)
    x = prompts(rng)
    ids = lm.generate(x, stop_token_ids=None)["token_ids"]
    assert ids.shape == (3, 6)
    given = x["padding_mask"].astype(bool)
    np.testing.assert_array_equal(ids[given], x["token_ids"][given])
    assert ((0 <= ids) & (ids < tiny.VOCABULARY)).all()


def test_what_follows_a_stop_token_is_left_out(lm, rng):
    lm.compile(sampler="greedy")
    x = prompts(rng)
    free = lm.generate(x, stop_token_ids=None)["token_ids"]
    stop = int(free[0, 2])
    result = lm.generate(x, stop_token_ids=(stop,))
    for row, prompt in enumerate(PROMPTS[:, 0]):
        stops = np.flatnonzero(free[row, prompt:] == stop)
        length = prompt + stops[0] + 1 if len(stops) else 6
        wanted = [i < length for i in range(6)]
        assert result["padding_mask"][row].tolist() == wanted
        kept = np.where(wanted, free[row], 0)
        np.testing.assert_array_equal(result["token_ids"][row], kept)


def test_new_tokens_are_counted_from_the_prompt(lm, rng):
    lm.compile(sampler="greedy")
    result = lm.generate(prompts(rng), stop_token_ids=None, max_new_tokens=2)
    lengths = result["padding_mask"].sum(axis=1)
    np.testing.assert_array_equal(lengths, PROMPTS[:, 0] + 2)


def test_a_dataset_of_batches_and_an_empty_batch(lm, rng):
    tf = pytest.importorskip("tensorflow")
    lm.compile(sampler="greedy")
    x = prompts(rng)
    data = tf.data.Dataset.from_tensor_slices(x).batch(2)
    wanted = lm.generate(x, stop_token_ids=None)
    found = lm.generate(data, stop_token_ids=None)
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    nothing = {name: value[:0] for name, value in x.items()}
    nothing = lm.generate(nothing, stop_token_ids=None)
    assert nothing["token_ids"].shape == (0, 0)
    nothing = lm.generate(data.take(0), stop_token_ids=None)
    assert set(nothing) == {"token_ids", "padding_mask"}


def test_prompts_with_padding_on_the_left_are_refused(lm, rng):
    x = prompts(rng)
    x["padding_mask"] = x["padding_mask"][:, ::-1]
    with pytest.raises(ValueError, match="padding_mask must mark the first"):
        lm.generate(x, stop_token_ids=None)


def test_inputs_of_an_encoder_are_refused(lm, rng):
    with pytest.raises(ValueError, match="keys token_ids, padding_mask"):
        lm.generate(tiny.inputs(rng), stop_token_ids=None)


def test_more_tokens_than_learned_positions_are_refused(rng):
    lm = tiny.causal_lm("gpt")
    with pytest.raises(ValueError, match="at most 24, the backbone's"):
        lm.generate(prompts(rng), stop_token_ids=None, max_new_tokens=22)


def test_a_batch_whose_rows_change_each_other_must_be_asked_for(rng):
    lm = tiny.causal_lm(eval_capacity_factor=1.0, min_capacity=1)
    assert lm.is_batch_dependent
    with pytest.raises(ValueError, match="allow_batch_dependent=True"):
        lm.generate(prompts(rng), stop_token_ids=None)
    assert not tiny.causal_lm().is_batch_dependent


def test_the_cache_has_only_the_heads_that_are_shared(lm, rng):
    # 2 layers, keys and values, 2 of 4 heads of 6 numbers of 4 bytes.
    needed = 2 * 2 * 2 * 6 * 4 * 4 * 16  # 4 rows, 16 columns
    lm.generate(prompts(rng), stop_token_ids=None, max_cache_bytes=needed)
    with pytest.raises(ValueError, match=f"at least {needed:,}"):
        lm.generate(
            prompts(rng), stop_token_ids=None, max_cache_bytes=needed - 1
        )


def test_generate_from_strings(text_lm):
    text_lm.compile(sampler="greedy")
    one = text_lm.generate("the dog", max_length=8)
    assert one.startswith("the dog")
    assert text_lm.generate(["the dog"] * 2, max_length=8) == [one, one]
    rest = text_lm.generate("the dog", max_length=8, strip_prompt=True)
    assert one.replace(" ", "") == "thedog" + rest.replace(" ", "")
    with pytest.raises(ValueError, match="inputs must have at most 3 tokens"):
        text_lm.generate("the quick brown fox", max_length=3)
    with pytest.raises(ValueError, match="inputs must be a string or a list"):
        text_lm.generate({"encoder_text": "the dog"})


def test_fit_on_strings_learns_and_logs_every_router(text_lm):
    text_lm.compile(optimizer=keras.optimizers.Adam(0.01))
    texts = list(tiny.TEXTS)
    history = text_lm.fit(texts, batch_size=5, epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    layers = {name.split("/")[0] for name in history if "/" in name}
    assert layers == {"transformer_layer_0", "transformer_layer_1"}
    results = text_lm.evaluate(texts, verbose=0, return_dict=True)
    # Evaluation is dropless, and has no auxiliary losses.
    assert results["transformer_layer_0/dropped_fraction"] == 0


def test_the_loss_is_the_mean_over_next_tokens_and_the_routers(lm, rng):
    lm.compile(routing_metrics=None)
    x = tiny.causal_inputs(rng)
    y = rng.integers(0, tiny.VOCABULARY, (3, 7)).astype("int32")
    weights = x["padding_mask"].astype("float32")
    logits = lm.predict_on_batch(x)
    assert logits.dtype == np.float32
    logits = logits.astype("float64")
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    wanted = ((log_z - chosen) * weights).sum() / weights.sum()
    loss = lm.test_on_batch(x, y, weights, return_dict=True)["loss"]
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_training_adds_the_losses_of_the_routers(rng):
    x = tiny.causal_inputs(rng)
    y, weights = x["token_ids"], x["padding_mask"].astype("float32")

    def loss(weight):
        router = keras_switch.TopKRouter(
            exploration="argmax",
            second_policy="all",
            load_balancing_loss_weight=weight,
        )
        keras.utils.set_random_seed(1)
        lm = tiny.causal_lm(router=router, capacity_factor=8.0)
        lm.compile(keras.optimizers.SGD(0.0), routing_metrics="layers")
        logs = lm.train_on_batch(x, y, weights, return_dict=True)
        names = [n for n in logs if n.endswith("/load_balancing_loss")]
        assert len(names) == 2
        return float(logs["loss"]), sum(float(logs[n]) for n in names)

    without, _ = loss(0.0)
    with_losses, routers = loss(0.25)
    np.testing.assert_allclose(with_losses - without, routers / 4, rtol=1e-3)


def test_tied_logits_are_scaled(rng):
    lm = tiny.causal_lm("glam")
    x = tiny.causal_inputs(rng)
    hidden = lm.backbone.predict_on_batch(x)
    table = ops.convert_to_numpy(lm.backbone.token_embedding.embeddings)
    logits = lm.predict_on_batch(x)
    np.testing.assert_allclose(logits, hidden @ table.T / 4, atol=1e-4)


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="SwitchCausalLM has no argument x"):
        SwitchCausalLM(tiny.causal_backbone(), x=1)


def test_lora_adapts_queries_and_values():
    lm = tiny.causal_lm("fairseq")
    lm.backbone.enable_lora(2)
    adapted = {w.path for w in lm.trainable_weights}
    assert {p.rpartition("/")[0] for p in adapted} == {
        f"transformer_layer_{i}/self_attention/{dense}"
        for i in range(2)
        for dense in ("query", "value")
    }


def test_int8_is_close(rng):
    lm = tiny.causal_lm("fairseq")
    x = tiny.causal_inputs(rng)
    before = lm.predict_on_batch(x)
    lm.quantize("int8")
    after = lm.predict_on_batch(x)
    assert 0 < np.abs(after - before).max() < 0.2 * np.abs(before).max()
