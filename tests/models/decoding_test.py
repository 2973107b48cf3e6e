import functools

import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_switch.models import BeamSampler, decoding
from tests.models import generating
from tests.models.generating import prompts

SAMPLERS = (
    "greedy",
    "beam",
    "top_k",
    "top_p",
    "random",
    "contrastive",
    BeamSampler(num_beams=3),
)


@pytest.fixture(scope="module")
def lm():
    return generating.lm()


def full_pass(lm, x, ids):
    """Logits and the decoder's output for whole rows."""
    full = {**x, "decoder_token_ids": ids}
    full["decoder_padding_mask"] = np.ones_like(ids)
    hidden = lm.backbone.predict_on_batch(full)["decoder_sequence_output"]
    return lm.predict_on_batch(full), hidden


def contrastive_by_hand(lm, x, k, alpha):
    """Contrastive search (Su et al., 2022) by full passes."""
    ids = np.array(x["decoder_token_ids"])
    for t in range(1, ids.shape[1]):
        logits, _ = full_pass(lm, x, ids)
        p = np.exp(logits[:, t - 1] - logits[:, t - 1].max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        for row in range(len(ids)):
            if x["decoder_padding_mask"][row, t]:
                continue
            best = -np.inf
            for token in np.argsort(-p[row])[:k]:
                tried = ids.copy()
                tried[row, t] = token
                h = full_pass(lm, x, tried)[1][row].astype("float64")
                h = h / np.linalg.norm(h, axis=-1, keepdims=True)
                score = (1 - alpha) * p[row, token]
                score -= alpha * (h[:t] @ h[t]).max()
                if score > best:
                    best, ids[row, t] = score, token
    return ids


@pytest.mark.parametrize("lengths", [(1, 3), (4, 3)])
def test_contrastive_search_equals_one_by_full_passes(lm, lengths, rng):
    # All rows stand behind columns of nothing.
    x = prompts(rng, lengths, width=7)
    lm.compile(sampler=keras_hub.samplers.ContrastiveSampler(k=4, alpha=0.5))
    result = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    wanted = contrastive_by_hand(lm, x, k=4, alpha=0.5)
    np.testing.assert_array_equal(result, wanted)
    lm.compile(sampler="greedy")
    greedy = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    assert (greedy != wanted).any()


def test_a_step_equals_a_full_pass_also_behind_empty_columns(lm, rng):
    x = prompts(rng, (5, 5))
    logits, hidden = full_pass(lm, x, x["decoder_token_ids"])
    shifted = np.full((2, 8), -1)
    shifted[:, 3:] = x["decoder_token_ids"]
    prompt = ops.convert_to_tensor(shifted.astype("int32"))
    inputs = {**x, "decoder_token_ids": shifted}
    inputs["prompt_token_ids"] = x["decoder_token_ids"][:, :2]
    inputs = {k: np.asarray(v, "int32") for k, v in inputs.items()}
    inputs = {k: ops.convert_to_tensor(v) for k, v in inputs.items()}
    seen, state = decoding.read_prompt(lm, inputs)
    seen = ops.convert_to_numpy(ops.stop_gradient(seen))
    np.testing.assert_allclose(seen, hidden[:, :2], atol=1e-5)
    step = functools.partial(decoding.next_token, lm, 3)
    for t in range(2, 5):
        found, output, state = step(prompt, state, 3 + t + 1)
        found, output = (
            ops.convert_to_numpy(ops.stop_gradient(v)) for v in (found, output)
        )
        np.testing.assert_allclose(found, logits[:, t], atol=1e-5)
        np.testing.assert_allclose(output, hidden[:, t], atol=1e-5)
    assert ops.convert_to_numpy(state.first_bad).tolist() == [8, 8]


def test_the_compiled_part_takes_the_four_inputs_alone(lm, rng):
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 3, 2))
    tensors = {k: np.asarray(v, "int32") for k, v in x.items()}
    tensors = {k: ops.convert_to_tensor(v) for k, v in tensors.items()}
    outputs = lm.make_generate_function()(tensors, stop_token_ids=None)
    outputs = {k: ops.convert_to_numpy(v) for k, v in outputs.items()}
    wanted = lm.generate(x, stop_token_ids=None)
    for name, value in wanted.items():
        np.testing.assert_array_equal(outputs[name], value)
    assert outputs["decoder_finite_mask"].all()


def test_several_sequences_a_row_are_refused(lm, rng):
    beam = keras_hub.samplers.BeamSampler(return_all_beams=True)
    lm.compile(sampler=beam)
    with pytest.raises(ValueError, match="return_all_beams=False"):
        lm.generate(prompts(rng, (1, 1)), stop_token_ids=None)


def test_a_sampler_is_left_as_it_was(lm, rng):
    sampler = keras_hub.samplers.TopKSampler(seed=1)
    before = set(vars(sampler))
    lm.compile(sampler=sampler)
    lm.generate(prompts(rng, (1, 1)), stop_token_ids=None)
    assert lm.sampler is sampler
    assert set(vars(sampler)) == before


@pytest.mark.parametrize(
    "sampler, layers",
    [(sampler, generating.DENSE) for sampler in SAMPLERS]
    + [("greedy", generating.SPARSE)],
)
def test_logits_that_are_not_finite_raise(sampler, layers, rng):
    lm = generating.lm(**layers)
    lm.compile(sampler=sampler)
    table = lm.backbone.token_embedding.embeddings
    broken = np.array(ops.convert_to_numpy(table))
    broken[7] = np.nan
    table.assign(broken)
    x = prompts(rng, (1, 1, 2))
    x["encoder_token_ids"][x["encoder_token_ids"] == 7] = 8
    x["decoder_token_ids"][:] = 0
    x["encoder_token_ids"][1, 0] = 7  # the second row reads it
    with pytest.raises(FloatingPointError, match=r"Logits of rows \[1\] are"):
        lm.generate(x, max_new_tokens=1, stop_token_ids=(1,))
    table.assign(np.full_like(broken, np.nan))
    with pytest.raises(FloatingPointError, match=r"rows \[0, 1, 2\] are not"):
        lm.generate(x, stop_token_ids=(1,))
