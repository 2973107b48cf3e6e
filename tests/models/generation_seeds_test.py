"""Random draws: by seed, and from several threads."""

import concurrent.futures

import keras_hub
import pytest
from keras import ops

from keras_switch.models import generation
from tests.models import generating, tiny
from tests.models.generating import TEXTS

DRAWS = {
    "top_k": lambda: keras_hub.samplers.TopKSampler(k=20, seed=3),
    "top_p": lambda: keras_hub.samplers.TopPSampler(p=0.95, seed=3),
    "random": lambda: keras_hub.samplers.RandomSampler(seed=3),
}


@pytest.fixture(scope="module")
def text_lm():
    return generating.lm(tiny.preprocessor())


@pytest.mark.parametrize("sampler", sorted(DRAWS))
def test_a_seed_decides_what_is_drawn(text_lm, sampler):
    text_lm.compile(sampler=DRAWS[sampler]())
    first = text_lm.generate(TEXTS, max_length=10, seed=5)
    own = [text_lm.generate(TEXTS, max_length=10) for _ in range(2)]
    assert text_lm.generate(TEXTS, max_length=10, seed=5) == first
    others = [text_lm.generate(TEXTS, max_length=10, seed=s) for s in (4, 6)]
    assert first not in others and others[0] != others[1]
    assert own[0] != own[1]
    # Seeded calls leave the sampler's own draws as they would have been.
    text_lm.compile(sampler=DRAWS[sampler]())
    assert [text_lm.generate(TEXTS, max_length=10) for _ in range(2)] == own


def test_neighbouring_seeds_do_not_share_draws():
    """On torch the two halves of a state are added."""
    states = {
        int(sum(generation._random_state(seed, part, 0))) + step
        for seed in range(50)
        for part in range(2)
        for step in range(50)
    }
    assert len(states) == 50 * 2 * 50


def test_threads_get_what_their_seeds_give(text_lm):
    text_lm.compile(sampler=DRAWS["top_k"]())
    calls = [(TEXTS[i % 5], i) for i in range(12)]

    def call(text, seed):
        return text_lm.generate(text, max_length=8, seed=seed)

    text_lm.generate_function = None
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, *zip(*calls, strict=True)))
    assert together == [call(*one) for one in calls]
    assert len(set(together)) > 6


def test_threads_without_seeds_lose_no_draw(text_lm):
    text_lm.compile(sampler=DRAWS["random"]())

    def call(_):
        return text_lm.generate("the", max_length=8, stop_token_ids=None)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(12)))
    (state,) = text_lm.sampler.variables
    assert ops.convert_to_numpy(state.value).tolist() == [3, 12 * 7]
    assert len(set(results)) > 6
