"""Pre-training objectives: functions of tokens and a random generator."""

import bisect
from typing import Any, NamedTuple

import numpy as np

from keras_switch.data.ragged import positions, starts_of
from keras_switch.data.spans import append_eos, random_segments, replace_spans
from keras_switch.data.vocabulary import NUM_SENTINELS


class Examples(NamedTuple):
    """Inputs and targets of several examples, end to end, eos included.

    Args:
        inputs: int32 `[sum(input_lengths)]`.
        input_lengths: int64 `[N]`.
        targets: int32 `[sum(target_lengths)]`.
        target_lengths: int64 `[N]`.
    """

    inputs: np.ndarray
    input_lengths: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray


class SpanCorruption:
    """T5's objective: fill in the spans that sentinels stand for.

    Of n tokens, `round(n * noise_density)` are noise, in
    `round(noise / mean_span)` spans (both at least 1) that alternate with
    kept spans, a kept span first and a noise span last as in T5; both kinds
    are cut up at random. In the inputs every noise span is replaced by its
    own sentinel, in the targets every kept span; both end with eos. All
    lengths follow from n.

    Args:
        vocabulary_size: ids of the model, with the 100 sentinels;
            `<extra_id_i>` is `vocabulary_size - 1 - i`.
        noise_density: part of the tokens to hide; 0.15 in the paper.
        mean_span: mean length of a hidden span; 3 in the paper.

    Call arguments:
        tokens: integers `[sum(lengths)]`, the examples end to end.
        lengths: integers `[N]`, each at least `min_tokens`.
        rng: `numpy.random.Generator`.

    Returns:
        `Examples`.

    Reference:
        Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.
    """

    min_tokens = 2

    def __init__(
        self,
        vocabulary_size: int,
        noise_density: float = 0.15,
        mean_span: float = 3.0,
    ):
        if vocabulary_size <= NUM_SENTINELS:
            raise ValueError(
                "vocabulary_size must be more than the 100 sentinels; "
                f"received {vocabulary_size}."
            )
        if not 0 < noise_density < 1:
            raise ValueError(
                "noise_density must be between 0 and 1; received "
                f"{noise_density}."
            )
        if not mean_span >= 1:
            raise ValueError(
                f"mean_span must be at least 1; received {mean_span}."
            )
        self.vocabulary_size = vocabulary_size
        self.noise_density = noise_density
        self.mean_span = mean_span

    def __call__(self, tokens, lengths, rng):
        lengths = np.asarray(lengths, np.int64)
        noise, spans = self._counts(lengths)
        self._check(tokens, lengths, spans)
        kept = random_segments(lengths - noise, spans, rng)
        hidden = random_segments(noise, spans, rng)
        # Kept, hidden, kept, hidden ...: every example has as many of each.
        runs = np.stack([kept, hidden], axis=1).ravel()
        mask = np.repeat(np.arange(runs.size) % 2 == 1, runs)
        input_lengths, target_lengths = self.lengths(lengths)
        return Examples(
            append_eos(self._replace(tokens, mask, lengths), input_lengths),
            input_lengths,
            append_eos(self._replace(tokens, ~mask, lengths), target_lengths),
            target_lengths,
        )

    def lengths(self, num_tokens):
        """Lengths of the inputs and targets made from `num_tokens` tokens.

        Args:
            num_tokens: an integer or an array of them.

        Returns:
            `(input_length, target_length)`, eos included.
        """
        num_tokens = np.asarray(num_tokens, np.int64)
        noise, spans = self._counts(num_tokens)
        return num_tokens - noise + spans + 1, noise + spans + 1

    def _counts(self, lengths):
        # np.round and T5 both round halves to even.
        noise = np.round(lengths * self.noise_density).astype(np.int64)
        noise = np.clip(noise, 1, np.maximum(lengths - 1, 1))
        spans = np.round(noise / self.mean_span).astype(np.int64)
        return noise, np.clip(spans, 1, np.minimum(noise, lengths - noise))

    def _check(self, tokens, lengths, spans):
        pieces = self.vocabulary_size - NUM_SENTINELS
        if tokens.size and tokens.max() >= pieces:
            raise ValueError(
                "tokens must be below the sentinels, vocabulary_size - "
                f"{NUM_SENTINELS}; received token {tokens.max()} and "
                f"vocabulary_size={self.vocabulary_size}."
            )
        if lengths.size and lengths.min() < self.min_tokens:
            raise ValueError(
                "lengths must be at least 2, a token to keep and one to "
                f"hide; received {lengths.min()}."
            )
        if spans.size and spans.max() > NUM_SENTINELS:
            raise ValueError(
                f"an example must have at most {NUM_SENTINELS} spans, one for "
                f"each sentinel; received {lengths.max()} tokens, which make "
                f"{spans.max()}. Shorten the window or lengthen mean_span."
            )

    def _replace(self, tokens, mask, lengths):
        return replace_spans(tokens, mask, self.vocabulary_size, lengths)


def span_corruption(
    tokens: np.ndarray,
    rng: np.random.Generator,
    vocabulary_size: int,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """`SpanCorruption` of one window or of a batch of equal windows.

    Args:
        tokens: integers `[T]` or `[B, T]`, T at least 2.
        rng: the random generator.
        vocabulary_size: ids of the model, with the 100 sentinels.
        noise_density: part of the tokens to hide.
        mean_span: mean length of a hidden span.

    Returns:
        `(inputs, targets)`, int32 `[T']` and `[T'']`, or with B in front;
        both end with eos.

    Raises:
        ValueError: on a bad argument, or if T makes over 100 spans.

    Example:
        rng = np.random.default_rng(0)
        tokens = np.arange(10, 30)
        inputs, targets = span_corruption(tokens, rng, vocabulary_size=1000)
        # inputs  ... 16 999 20 ... 1     targets  999 17 18 19 1
    """
    objective = SpanCorruption(vocabulary_size, noise_density, mean_span)
    tokens, lengths = _as_rows(tokens)
    examples = objective(tokens.ravel(), lengths, rng)
    shape = (*tokens.shape[:-1], -1)
    return examples.inputs.reshape(shape), examples.targets.reshape(shape)


def span_corruption_window(
    input_length: int,
    noise_density: float = 0.15,
    mean_span: float = 3.0,
) -> tuple[int, int]:
    """The window that span corruption turns into full inputs.

    Args:
        input_length: length the inputs may have, sentinels and eos included.
        noise_density: part of the tokens to hide.
        mean_span: mean length of a hidden span.

    Returns:
        `(window, target_length)`: the largest number of tokens that fits,
        and the length of its targets with eos.

    Raises:
        ValueError: if `input_length` is under 3, or makes over 100 spans.
    """
    objective = SpanCorruption(NUM_SENTINELS + 1, noise_density, mean_span)
    window = largest_window(objective, input_length)
    return window, int(objective.lengths(window)[1])


class PrefixLM:
    """Continue a text whose beginning is given.

    Of n tokens the inputs get the first p, where p is drawn evenly from 1 to
    `m = round(n * prefix_fraction)`, and the targets the n - m that follow;
    both end with eos. A short prefix leaves many targets for the decoder to
    learn from.

    Args:
        prefix_fraction: the longest prefix, as a part of the tokens.

    Call arguments:
        tokens: integers `[sum(lengths)]`, the examples end to end.
        lengths: integers `[N]`, each at least `min_tokens`.
        rng: `numpy.random.Generator`.

    Returns:
        `Examples`.

    Reference:
        Raffel et al. 2020, arXiv:1910.10683, section 3.2.3.
    """

    min_tokens = 2

    def __init__(self, prefix_fraction: float = 0.25):
        if not 0 < prefix_fraction < 1:
            raise ValueError(
                "prefix_fraction must be between 0 and 1; received "
                f"{prefix_fraction}."
            )
        self.prefix_fraction = prefix_fraction

    def __call__(self, tokens, lengths, rng):
        lengths = np.asarray(lengths, np.int64)
        if lengths.size and lengths.min() < self.min_tokens:
            raise ValueError(
                "lengths must be at least 2, a token of prefix and one to "
                f"continue with; received {lengths.min()}."
            )
        longest = self._longest(lengths)
        prefix = 1 + (rng.random(lengths.size) * longest).astype(np.int64)
        starts, continued = starts_of(lengths), lengths - longest
        inputs = tokens[positions(starts, prefix)]
        targets = tokens[positions(starts + prefix, continued)]
        return Examples(
            append_eos(inputs, prefix + 1),
            prefix + 1,
            append_eos(targets, continued + 1),
            continued + 1,
        )

    def lengths(self, num_tokens):
        """Longest inputs, and the targets, made from `num_tokens` tokens.

        Args:
            num_tokens: an integer or an array of them.

        Returns:
            `(input_length, target_length)`, eos included.
        """
        num_tokens = np.asarray(num_tokens, np.int64)
        longest = self._longest(num_tokens)
        return longest + 1, num_tokens - longest + 1

    def _longest(self, lengths):
        longest = np.round(lengths * self.prefix_fraction).astype(np.int64)
        return np.clip(longest, 1, np.maximum(lengths - 1, 1))


class NextToken:
    """The objective of a decoder alone: every token from those before it.

    There are no inputs but the targets, one place back; they end with eos.

    Call arguments:
        tokens: integers `[sum(lengths)]`, the examples end to end.
        lengths: integers `[N]`, each at least `min_tokens`.
        rng: not used.

    Returns:
        `Examples`, whose inputs are its targets.
    """

    min_tokens = 1
    decoder_only = True

    def __call__(self, tokens, lengths, rng):
        del rng
        lengths = np.asarray(lengths, np.int64) + 1
        targets = append_eos(np.asarray(tokens), lengths)
        return Examples(targets, lengths, targets, lengths)

    def lengths(self, num_tokens):
        """The length of a row's targets, eos included, twice.

        Args:
            num_tokens: an integer or an array of them.
        """
        lengths = np.asarray(num_tokens, np.int64) + 1
        return lengths, lengths


def prefix_lm(
    tokens: np.ndarray,
    rng: np.random.Generator,
    prefix_fraction: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """`PrefixLM` of one window.

    Args:
        tokens: integers `[T]`, T at least 2.
        rng: the random generator.
        prefix_fraction: the longest prefix, as a part of the tokens.

    Returns:
        `(inputs, targets)`, int32, both ending with eos.

    Raises:
        ValueError: on a bad argument.
    """
    tokens, lengths = _as_rows(tokens)
    if tokens.ndim != 1:
        raise ValueError(
            f"tokens must have rank 1; received shape {tokens.shape}."
        )
    examples = PrefixLM(prefix_fraction)(tokens, lengths, rng)
    return examples.inputs, examples.targets


def largest_window(
    objective: Any, input_length: int, target_length: int | None = None
) -> int:
    """The most tokens that an objective makes fitting inputs and targets of.

    Args:
        objective: `SpanCorruption`, `PrefixLM` or the like: `min_tokens`,
            `lengths(num_tokens)` that never falls, and a call.
        input_length: length the inputs may have, eos included.
        target_length: the same of the targets; None = any.

    Returns:
        The number of tokens.

    Raises:
        ValueError: if not even `min_tokens` fit, or the objective refuses
            so many.
    """

    def too_long(num_tokens):
        inputs, targets = objective.lengths(num_tokens)
        return inputs > input_length or (
            target_length is not None and targets > target_length
        )

    least = objective.min_tokens
    if too_long(least):
        needed = [int(length) for length in objective.lengths(least)]
        raise ValueError(
            f"input_length and target_length must be at least {needed[0]} and "
            f"{needed[1]}; received {input_length} and {target_length}."
        )
    end = 2 * least
    while not too_long(end):
        end *= 2
    window = bisect.bisect_left(range(end), True, lo=least, key=too_long) - 1
    # The objective's own checks, for instance of the number of sentinels.
    objective(np.zeros(window, np.int32), [window], np.random.default_rng(0))
    return window


def _as_rows(tokens):
    """The tokens as an array, and the length of every row."""
    tokens = np.asarray(tokens)
    if tokens.ndim not in (1, 2):
        raise ValueError(
            "tokens must have the shape [T] or [B, T]; received "
            f"{tokens.shape}."
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens must be integers; received dtype {tokens.dtype}."
        )
    rows = tokens.shape[0] if tokens.ndim == 2 else 1
    return tokens, np.full(rows, tokens.shape[-1], np.int64)
