"""Beam search, held to a search in plain Python."""

import numpy as np
import pytest
from keras import ops

from keras_switch.models.beam_sampler import BeamSampler

VOCABULARY, LENGTH, STOP = 5, 6, 1


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def table(seed, batch=2):
    """Logits of the next token by row, position and last token."""
    rng = np.random.default_rng(seed)
    return rng.normal(
        size=(batch, LENGTH, VOCABULARY, VOCABULARY), scale=1.5
    ).astype("float32")


def search(logits, prompt, beams, penalty, early):
    """One row: the best sequences and their scores, by the book."""
    start = len(prompt)
    running, pool = [(0.0, list(prompt))], []
    for index in range(start, LENGTH):
        best = running[0][0] / max(index - start, 1) ** penalty
        if len(pool) == beams and (early or best <= pool[-1][0]):
            break
        candidates = []
        for score, tokens in running:
            steps = log_softmax(logits[index - 1, tokens[-1]])
            candidates += [
                (score + steps[t], [*tokens, t]) for t in range(VOCABULARY)
            ]
        candidates.sort(key=lambda c: -c[0])
        candidates = candidates[: 2 * beams]
        ended = [c[1][-1] == STOP or index + 1 == LENGTH for c in candidates]
        running = [c for c, e in zip(candidates, ended, strict=True) if not e][
            :beams
        ]
        pool += [
            (score / (index + 1 - start) ** penalty, tokens)
            for (score, tokens), e in zip(candidates, ended, strict=True)
            if e
        ][: sum(ended[:beams])]
        pool = sorted(pool, key=lambda c: -c[0])[:beams]
        if not running:
            break
    return pool


def run(sampler, logits, prompts):
    prompt = np.zeros((len(prompts), LENGTH), "int32")
    mask = np.zeros((len(prompts), LENGTH), bool)
    for row, tokens in enumerate(prompts):
        prompt[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    rows = ops.arange(len(prompts), dtype="int32")
    flat = ops.convert_to_tensor(logits.reshape(-1, VOCABULARY))

    def step(prompt, cache, index):
        last = ops.cast(ops.take(prompt, index - 1, axis=1), "int32")
        place = (cache * LENGTH + index - 1) * VOCABULARY + last
        return ops.take(flat, place, axis=0), None, cache

    return sampler(
        next=step,
        prompt=ops.convert_to_tensor(prompt),
        cache=rows,
        index=min(len(tokens) for tokens in prompts),
        mask=ops.convert_to_tensor(mask),
        stop_token_ids=[STOP],
    )


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_equals_a_plain_search(beams, early, penalty):
    sampler = BeamSampler(
        beams, penalty, early_stopping=early, return_all_beams=True
    )
    ended = 0
    for seed in range(4):
        logits = table(seed)
        sequences, scores = run(sampler, logits, [[0], [0]])
        sequences = ops.convert_to_numpy(sequences)
        scores = ops.convert_to_numpy(scores)
        for row in range(2):
            pool = search(logits[row], [0], beams, penalty, early)
            for place, (score, tokens) in enumerate(pool):
                ended += len(tokens) < LENGTH
                padded = tokens + [0] * (LENGTH - len(tokens))
                assert sequences[row, place].tolist() == padded
                np.testing.assert_allclose(scores[row, place], score, atol=1e-5)
    assert ended  # sequences that end early were among them


def test_prompts_of_different_lengths():
    """A row finds what it finds alone, from its own prompt on."""
    logits = table(7, batch=3)
    prompts = [[0], [0, 3, STOP, 2], [0, 4]]
    sequences = ops.convert_to_numpy(run(BeamSampler(3), logits, prompts))
    for row, prompt in enumerate(prompts):
        tokens = search(logits[row], prompt, 3, 1.0, False)[0][1]
        padded = tokens + [0] * (LENGTH - len(tokens))
        assert sequences[row].tolist() == padded


def test_no_room_returns_the_prompt():
    prompt = [[0, 2, 3, 4, 2, 3]]
    sequences = run(BeamSampler(2), table(0, 1), prompt)
    assert ops.convert_to_numpy(sequences).tolist() == prompt


def test_config():
    sampler = BeamSampler(4, length_penalty=0.6, early_stopping=True)
    again = BeamSampler.from_config(sampler.get_config())
    assert again.get_config() == sampler.get_config()


@pytest.mark.parametrize("beams", [0, -1, 2.5, True])
def test_bad_arguments(beams):
    with pytest.raises(ValueError, match="num_beams must be"):
        BeamSampler(beams)
