import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_switch.data import (
    NextToken,
    PrefixLM,
    SpanCorruption,
    largest_window,
    prefix_lm,
    span_corruption,
    span_corruption_window,
)

VOCABULARY = 1000


def reconstruct(inputs, targets, vocabulary_size=VOCABULARY):
    """The original tokens, from one example's inputs and targets."""
    assert inputs[-1] == 1 and targets[-1] == 1
    spans, sentinel = {}, None
    for token in targets[:-1]:
        if token >= vocabulary_size - 100:
            # Sentinels count down from the top, each once.
            sentinel = token
            assert sentinel == vocabulary_size - 1 - len(spans)
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    assert all(spans.values())
    original = []
    for token in inputs[:-1]:
        original += spans.pop(token) if token in spans else [token]
    assert not spans
    return original


@hypothesis.given(
    length=st.integers(2, 200),
    noise_density=st.floats(0.05, 0.9),
    mean_span=st.floats(1, 6),
    seed=st.integers(0, 2**32),
)
@hypothesis.settings(deadline=None, max_examples=150)
def test_inputs_and_targets_hold_the_original(
    length, noise_density, mean_span, seed
):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCABULARY - 100, length)
    settings = (VOCABULARY, noise_density, mean_span)
    objective = SpanCorruption(*settings)
    hypothesis.assume(objective._counts(np.array(length))[1] <= 100)
    inputs, targets = span_corruption(tokens, rng, *settings)
    assert reconstruct(inputs.tolist(), targets.tolist()) == tokens.tolist()
    assert (len(inputs), len(targets)) == objective.lengths(length)


@hypothesis.given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_several_lengths_at_once(lengths, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCABULARY - 100, sum(lengths))
    examples = SpanCorruption(VOCABULARY)(tokens, lengths, rng)
    parts = [
        np.split(flat, np.cumsum(of_each)[:-1])
        for flat, of_each in (examples[:2], examples[2:])
    ]
    originals = np.split(tokens, np.cumsum(lengths)[:-1])
    for inputs, targets, tokens in zip(*parts, originals, strict=True):
        found = reconstruct(inputs.tolist(), targets.tolist())
        assert found == tokens.tolist()


def test_a_batch_of_windows_keeps_its_shape(rng):
    tokens = rng.integers(2, 900, (16, 114))
    inputs, targets = span_corruption(tokens, rng, VOCABULARY)
    # 17 tokens of noise in 6 spans.
    assert inputs.shape == (16, 114 - 17 + 6 + 1) and inputs.dtype == np.int32
    assert targets.shape == (16, 17 + 6 + 1) and targets.dtype == np.int32
    for row in range(16):
        found = reconstruct(inputs[row].tolist(), targets[row].tolist())
        assert found == tokens[row].tolist()
    assert len({tuple(np.flatnonzero(row > 900)) for row in inputs}) > 10


def test_the_generator_alone_decides():
    tokens = np.arange(2, 102)

    def run(seed):
        return span_corruption(tokens, np.random.default_rng(seed), VOCABULARY)

    for one, other in zip(run(5), run(5), strict=True):
        np.testing.assert_array_equal(one, other)
    assert run(5)[0].tolist() != run(6)[0].tolist()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((64, 0.20, 2.0), (70, 22)),
        ((64, 0.20, 1.0), (63, 27)),
        ((512, 0.15, 3.0), (568, 114)),
    ],
)
def test_windows_fill_the_inputs_as_in_t5(arguments, expected):
    assert span_corruption_window(*arguments) == expected


@hypothesis.given(
    input_length=st.integers(4, 200),
    noise_density=st.floats(0.05, 0.9),
    mean_span=st.floats(2, 6),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_the_window_is_the_largest(input_length, noise_density, mean_span):
    objective = SpanCorruption(VOCABULARY, noise_density, mean_span)
    try:
        window = largest_window(objective, input_length)
    except ValueError as error:
        assert "100 spans" in str(error)
        return
    assert objective.lengths(window)[0] <= input_length
    assert objective.lengths(window + 1)[0] > input_length


def test_the_window_heeds_the_target_length():
    objective = SpanCorruption(VOCABULARY)
    window = largest_window(objective, 256, target_length=20)
    assert objective.lengths(window)[1] <= 20
    assert objective.lengths(window + 1)[1] > 20
    with pytest.raises(ValueError, match="at least 3 and 3; received 2"):
        largest_window(objective, 2)
    with pytest.raises(ValueError, match="received 9 and 2"):
        largest_window(objective, 9, 2)


def test_too_many_spans_say_to_shorten_the_window(rng):
    with pytest.raises(ValueError, match="Shorten the window"):
        span_corruption_window(2048)
    with pytest.raises(ValueError, match="at most 100 spans.* make 101"):
        span_corruption(np.arange(2, 2022), rng, 5000)
    # 100 exactly are fine.
    span_corruption(np.arange(2, 2002), rng, 5000)


def test_span_corruption_refuses_bad_arguments(rng):
    tokens = np.arange(2, 22)
    for density in (0, 1, -0.1):
        with pytest.raises(ValueError, match="noise_density must be between"):
            span_corruption(tokens, rng, VOCABULARY, density)
    for mean in (0.5, float("nan")):
        with pytest.raises(ValueError, match="mean_span must be at least 1"):
            span_corruption(tokens, rng, VOCABULARY, 0.15, mean)
    with pytest.raises(ValueError, match="more than the 100 sentinels"):
        span_corruption(tokens, rng, 100)
    with pytest.raises(ValueError, match="received token 21 and .*=121"):
        span_corruption(tokens, rng, 121)
    span_corruption(tokens, rng, 122)
    for short in (tokens[:0], tokens[:1]):
        with pytest.raises(ValueError, match="lengths must be at least 2"):
            span_corruption(short, rng, VOCABULARY)
    with pytest.raises(ValueError, match=r"received \(1, 1, 20\)"):
        span_corruption(tokens[None, None], rng, VOCABULARY)
    with pytest.raises(ValueError, match="received dtype float64"):
        span_corruption(tokens * 1.0, rng, VOCABULARY)


@hypothesis.given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=6),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
@hypothesis.settings(deadline=None, max_examples=80)
def test_a_prefix_is_continued(lengths, fraction, seed):
    rng = np.random.default_rng(seed)
    tokens = np.arange(10, 10 + sum(lengths))
    objective = PrefixLM(fraction)
    examples = objective(tokens, lengths, rng)
    longest, targets = objective.lengths(lengths)
    assert (examples.input_lengths <= longest).all()
    assert examples.target_lengths.tolist() == targets.tolist()
    split = [
        np.split(flat, np.cumsum(of_each)[:-1])
        for flat, of_each in (examples[:2], examples[2:])
    ]
    starts = np.cumsum(lengths) - lengths
    for start, given, wanted in zip(starts, *split, strict=True):
        assert given[-1] == 1 and wanted[-1] == 1
        whole = [*given[:-1], *wanted[:-1]]
        assert len(given) > 1 and len(wanted) > 1
        assert whole == list(range(10 + start, 10 + start + len(whole)))


def test_every_length_of_prefix_is_as_likely(rng):
    lengths = np.full(4000, 16)
    examples = PrefixLM(0.25)(np.zeros(lengths.sum(), int), lengths, rng)
    counts = np.bincount(examples.input_lengths - 1)
    # 1 to 4; 1,000 expected, standard deviation 27.
    assert len(counts) == 5 and counts[0] == 0
    assert counts[1:].min() > 860 and counts.max() < 1140


def test_prefix_lm_of_one_window(rng):
    inputs, targets = prefix_lm(np.arange(10, 18), rng, 0.1)
    assert inputs.tolist() == [10, 1]
    assert targets.tolist() == [*range(11, 18), 1]
    with pytest.raises(ValueError, match="rank 1"):
        prefix_lm(np.ones((2, 4), int), rng)
    with pytest.raises(ValueError, match="at least 2"):
        prefix_lm(np.ones(1, int), rng)
    for fraction in (0, 1):
        with pytest.raises(ValueError, match="prefix_fraction must be"):
            prefix_lm(np.ones(4, int), rng, fraction)


def test_next_token_by_hand():
    examples = NextToken()(np.array([5, 6, 7]), [1, 2], None)
    assert examples.targets.tolist() == [5, 1, 6, 7, 1]
    assert examples.target_lengths.tolist() == [2, 3]
    assert examples.inputs.tolist() == examples.targets.tolist()
    assert examples.targets.dtype == np.int32
    assert largest_window(NextToken(), 8) == 7
