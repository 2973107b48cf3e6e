import gc
import tracemalloc

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_switch.models import BeamSampler, generation
from tests.models import generating, tiny
from tests.models.generating import SPARSE, TEXTS, prompts


@pytest.fixture(scope="module")
def lm():
    return generating.lm()


@pytest.fixture(scope="module")
def sparse_lm():
    return generating.lm(**SPARSE)


@pytest.fixture(scope="module")
def text_lm():
    return generating.lm(tiny.preprocessor())


def greedy_by_hand(lm, x):
    """Greedy search by full passes over unpadded rows."""
    ids = np.array(x["decoder_token_ids"])
    full = {**x, "decoder_padding_mask": np.ones_like(ids)}
    for t in range(1, ids.shape[1]):
        full["decoder_token_ids"] = ids
        best = np.argmax(lm.predict_on_batch(full)[:, t - 1], axis=-1)
        ids[:, t] = np.where(x["decoder_padding_mask"][:, t], ids[:, t], best)
    return ids


# --- Sizes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, smallest, largest, wanted",
    [
        (1, 1, None, 1),
        (3, 1, None, 4),
        (4, 1, None, 4),
        (3, 16, None, 16),
        (17, 16, 100, 32),
        (65, 16, 100, 100),
        (101, 16, 100, 128),
        (128, 1, None, 128),
        (129, 1, None, 256),
        (257, 1, None, 384),
        (3, 16, 8, 8),
    ],
)
def test_buckets(size, smallest, largest, wanted):
    assert generation.bucket(size, smallest, largest) == wanted


def test_padding_by_hand():
    x = {
        "encoder_token_ids": np.array([[7, 8, 1, 0], [9, 1, 0, 0]]),
        "encoder_padding_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]]),
        "decoder_token_ids": np.array([[0, 5, 1], [0, 6, 4]]),
        "decoder_padding_mask": np.array([[1, 0, 0], [1, 1, 0]]),
    }
    shape = generation.Shape(rows=4, encoder=3, decoder=5, prompt=2)
    padded = generation.pad(x, shape, 4, stop_token_ids=(1,))
    rows = {name: array.tolist() for name, array in padded.items()}
    one, two = [7, 8, 1], [9, 1, 0]
    assert rows["encoder_token_ids"] == [one, two, one, one]
    assert rows["encoder_padding_mask"][1] == [1, 1, 0]
    # Behind the prompt a stop token is nothing; added rows have ended.
    assert rows["decoder_token_ids"] == [
        [-1, 0, 5, -1, 0],
        [-1, 0, 6, 4, 0],
        [-1, 0, 5, -1, 1],
        [-1, 0, 5, -1, 1],
    ]
    assert rows["decoder_padding_mask"][:2] == [
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
    ]
    assert rows["prompt_token_ids"][:2] == [[0, 0], [0, 6]]
    assert {array.dtype.name for array in padded.values()} == {"int32"}


@pytest.mark.parametrize("lengths", [(1, 3, 2), (4, 5, 4), (5, 5, 5)])
def test_padded_rows_and_lengths_change_nothing(sparse_lm, lengths, rng):
    lm = sparse_lm
    lm.compile(sampler="greedy")
    x = prompts(rng, lengths)
    shape = generation.shape_of(
        {name: np.asarray(value) for name, value in x.items()}, 5, lm
    )
    assert (shape.rows, shape.encoder, shape.decoder) == (4, 16, 16)
    result = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    np.testing.assert_array_equal(result, greedy_by_hand(lm, x))


@pytest.mark.parametrize(
    "sampler", ["greedy", "beam", "contrastive", BeamSampler(num_beams=3)]
)
def test_a_row_alone_is_the_row_in_a_batch(text_lm, sampler):
    text_lm.compile(sampler=sampler)
    alone = [text_lm.generate(text, max_length=12) for text in TEXTS]
    assert text_lm.generate(TEXTS, max_length=12) == alone
    assert len(set(alone)) > 1


def test_rows_are_not_padded_where_padding_takes_capacity(rng):
    capacity = {"eval_capacity_factor": 1.0, "min_capacity": 1}
    lm = generating.lm(**SPARSE, **capacity, group_size=64)
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 2, 1))
    arrays = {name: np.asarray(value) for name, value in x.items()}
    assert generation.shape_of(arrays, 5, lm) == (3, 7, 16, 1)
    # Rows are routed together, and padding would take their places.
    bare = {**x, "prompt_token_ids": x["decoder_token_ids"][:, :1]}
    bare = {k: ops.convert_to_tensor(np.int32(v)) for k, v in bare.items()}
    wanted = lm.make_generate_function()(bare, stop_token_ids=None)
    wanted = ops.convert_to_numpy(wanted["decoder_token_ids"])
    with pytest.raises(ValueError, match="received 3 rows. allow_batch_depen"):
        lm.generate(x, stop_token_ids=None)
    result = lm.generate(x, stop_token_ids=None, allow_batch_dependent=True)
    np.testing.assert_array_equal(result["decoder_token_ids"], wanted)


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ({}, False),
        ({"group_size": 8}, False),
        ({"eval_capacity_factor": 2.0}, True),
        ({"capacity": 3}, True),
        ({"eval_capacity_factor": 2.0, "dispatch": "dropless"}, False),
        ({"router": "expert_choice", "decoder_router": "switch"}, False),
        (
            {
                "router": "expert_choice",
                "decoder_router": "switch",
                "group_size": 8,
            },
            True,
        ),
    ],
)
def test_what_depends_on_its_batch(arguments, wanted):
    lm = generating.lm(**SPARSE, **arguments)
    assert lm.is_batch_dependent is lm.backbone.is_batch_dependent is wanted
    layers = lm.backbone.encoder_transformer_layers
    assert layers[0].feed_forward.is_batch_dependent is wanted


def test_calls_of_many_sizes_share_what_is_compiled(text_lm, monkeypatch):
    """On torch, which compiles nothing, the shapes are what counts."""
    text_lm.compile(sampler="greedy")
    step, shapes = text_lm.generate_step, []

    def counted(inputs, stop_token_ids=None):
        shapes.append(tuple(tuple(v.shape) for v in inputs.values()))
        return step(inputs, stop_token_ids)

    monkeypatch.setattr(text_lm, "generate_step", counted)

    def call_all():
        for rows in (1, 3, 4):
            for length in (2, 7):
                text_lm.generate(TEXTS[:rows], max_length=length)

    call_all()
    compiled = len(shapes)
    # Rows 1 and 4; the length of the preprocessor, or 16.
    assert len(set(shapes)) == 4
    if keras.backend.backend() != "torch":
        assert compiled == 4
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    call_all()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 300_000
    assert len(set(shapes)) == 4
    if keras.backend.backend() != "torch":
        assert len(shapes) == compiled


# --- Ends ---------------------------------------------------------------------


def test_max_new_tokens_counts_from_each_prompt(lm, rng):
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 3, 2))
    result = lm.generate(x, stop_token_ids=None, max_new_tokens=4)
    ids, mask = result["decoder_token_ids"], result["decoder_padding_mask"]
    assert ids.shape == mask.shape == (3, 7)
    assert mask.sum(axis=1).tolist() == [5, 7, 6]
    assert (ids[~mask] == 0).all()
    longer = lm.generate(x, max_length=9, stop_token_ids=None)
    assert longer["decoder_padding_mask"].all()
    longer = longer["decoder_token_ids"]
    np.testing.assert_array_equal(np.where(mask, longer[:, :7], 0), ids)


def test_what_follows_a_stop_token_is_left_out(lm, rng):
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 2), width=8)
    free = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    # In the prompt, and as padding behind it, that token stops nothing.
    stop = int(free[0, 3])
    end = 2 + free[0, 1:].tolist().index(stop)
    x["decoder_token_ids"][1, 1] = stop
    x["decoder_token_ids"][1, 2:] = stop
    result = lm.generate(x, stop_token_ids=[stop])
    ids, mask = result["decoder_token_ids"], result["decoder_padding_mask"]
    assert mask[0].tolist() == [i < end for i in range(8)]
    assert ids[0].tolist() == [*free[0, :end], *[0] * (8 - end)]
    assert mask[1, :3].all()
    assert (ids[~mask] == 0).all()
    bare = lm.generate(x, stop_token_ids=[stop], strip_prompt=True)
    wanted = mask & (np.arange(8) >= [[1], [2]])
    np.testing.assert_array_equal(bare["decoder_padding_mask"], wanted)


def test_a_text_ends_with_its_first_end_token(text_lm, monkeypatch):
    text_lm.compile(sampler="greedy")
    free = text_lm.generate("the", max_length=8, stop_token_ids=None)
    tokenizer = text_lm.preprocessor.tokenizer
    dog = [int(i) for i in tokenizer("dog")]
    ids = np.array([[0, *dog, 1, *dog, 1]], "int32")

    def step(inputs, stop_token_ids=None):
        assert stop_token_ids == (1,)
        return {
            "decoder_token_ids": ops.convert_to_tensor(ids),
            "decoder_padding_mask": ops.cast(
                np.arange(ids.shape[1])[None] < 2 + len(dog), "bool"
            ),
            "decoder_finite_mask": ops.ones(ids.shape, "bool"),
        }

    monkeypatch.setattr(text_lm, "generate_step", step)
    text_lm.generate_function = None
    assert text_lm.generate("the", max_length=ids.shape[1]) == "dog"
    text_lm.generate_function = None
    assert isinstance(free, str)


# --- Limits -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_length", "max_new_tokens"])
def test_a_length_that_no_memory_holds_is_refused_at_once(
    text_lm, lm, name, rng
):
    wanted = "max_cache_bytes must be at least .* received max_cache_bytes=4,2"
    with pytest.raises(ValueError, match=wanted):
        text_lm.generate("the", **{name: 10**9})
    with pytest.raises(ValueError, match=wanted):
        lm.generate(tiny.inputs(rng), stop_token_ids=None, **{name: 10**9})


def test_the_estimate_is_the_size_of_the_caches(lm):
    lm.compile(sampler="greedy")
    shape = generation.Shape(rows=2, encoder=16, decoder=32, prompt=1)
    # One layer, keys and values, two heads of width 6, four bytes.
    size = 2 * (16 + 32) * 2 * 2 * 6 * 4
    generation.check_cache(shape, lm, size)
    with pytest.raises(ValueError, match=f"at least {size:,} for"):
        generation.check_cache(shape, lm, size - 1)
    lm.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=3))
    with pytest.raises(ValueError, match=f"at least {3 * size:,} for"):
        generation.check_cache(shape, lm, size)
    lm.compile(sampler=keras_hub.samplers.ContrastiveSampler(k=4))
    with pytest.raises(ValueError, match=f"at least {4 * size:,} for"):
        generation.check_cache(shape, lm, size)


def test_a_text_that_is_too_long_is_refused_or_cut(text_lm):
    text_lm.compile(sampler="greedy")
    long = "the dog walks in the park"
    wanted = "encoder_text must have at most 8 tokens; received .* in row 1"
    with pytest.raises(ValueError, match=wanted):
        text_lm.generate(["the", long])
    whole = text_lm.generate(["the", long], truncate=True)
    assert len(whole) == 2
    prompt = {"encoder_text": "the", "decoder_text": long}
    with pytest.raises(ValueError, match="decoder_text must have at most 6"):
        text_lm.generate(prompt)
    assert long.startswith(text_lm.generate(prompt, truncate=True))
    # The prompt may take all of what is asked for, and not more.
    count = 1 + len(text_lm.preprocessor.tokenizer(long))
    assert text_lm.generate(prompt, max_length=count) == long
    with pytest.raises(ValueError, match=f"at most {count - 1} tokens"):
        text_lm.generate(prompt, max_length=count - 1)


def test_a_prompt_of_ids_that_is_too_long_is_refused_or_cut(lm, rng):
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 4))
    with pytest.raises(ValueError, match="length of a prompt, 4 in row 1"):
        lm.generate(x, max_length=3, stop_token_ids=None)
    cut = lm.generate(x, max_length=3, stop_token_ids=None, truncate=True)
    assert cut["decoder_token_ids"].shape == (2, 3)
    np.testing.assert_array_equal(
        cut["decoder_token_ids"][1], x["decoder_token_ids"][1, :3]
    )
    # Without loss there is nothing to refuse.
    assert lm.generate(x, max_length=4, stop_token_ids=None)


def test_only_what_is_kept_must_be_finite(lm):
    mask = np.array([[True, True, True, False]])
    outputs = {
        "decoder_token_ids": np.array([[0, 5, 1, 9]]),
        "decoder_padding_mask": mask,
        "decoder_finite_mask": mask,
    }
    result = generation.cut(outputs, np.array([4]), lm)
    assert result["decoder_token_ids"].tolist() == [[0, 5, 1, 0]]
    outputs["decoder_finite_mask"] = np.array([[True, True, False, False]])
    with pytest.raises(FloatingPointError, match="range of float32"):
        generation.cut(outputs, np.array([4]), lm)


# --- Other inputs -------------------------------------------------------------


def test_an_empty_batch_gives_an_empty_result(text_lm, lm, rng):
    assert text_lm.generate([]) == []
    assert text_lm.generate({"encoder_text": [], "decoder_text": []}) == []
    x = {name: value[:0] for name, value in tiny.inputs(rng).items()}
    result = lm.generate(x, max_length=9, stop_token_ids=None)
    assert result["decoder_token_ids"].shape == (0, 9)
    assert result["decoder_padding_mask"].dtype == bool


def test_datasets(text_lm, lm, rng):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset
    text_lm.compile(sampler=keras_hub.samplers.TopKSampler(k=20))
    results = text_lm.generate(
        data.from_tensor_slices(TEXTS).batch(2), max_length=8, seed=1
    )
    assert len(results) == 5
    assert results[:2] == text_lm.generate(TEXTS[:2], max_length=8, seed=1)
    # Each batch draws on its own.
    same = data.from_tensor_slices(["the"] * 6).batch(1)
    assert len(set(text_lm.generate(same, max_length=8, seed=1))) > 1
    assert text_lm.generate(data.from_tensor_slices(TEXTS).take(0)) == []
    lm.compile(sampler="greedy")
    x = prompts(rng, (1, 3, 2))
    whole = lm.generate(x, stop_token_ids=None, max_new_tokens=2)
    parts = data.from_tensor_slices(x).batch(1)
    parts = lm.generate(parts, stop_token_ids=None, max_new_tokens=2)
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value)
    nothing = data.from_tensor_slices(x).take(0)
    nothing = lm.generate(nothing, stop_token_ids=None)
    assert nothing["decoder_token_ids"].shape == (0, 0)
