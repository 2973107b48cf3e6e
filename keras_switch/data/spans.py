"""Spans of tokens: cutting at random, sentinels, eos."""

import numpy as np

from keras_switch.data.ragged import positions, starts_of
from keras_switch.data.vocabulary import EOS_ID


def replace_spans(
    tokens: np.ndarray,
    mask: np.ndarray,
    vocabulary_size: int,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Puts one sentinel in the place of every run of masked tokens.

    Args:
        tokens: integers `[T]`.
        mask: bool `[T]`, the tokens to replace.
        vocabulary_size: the i-th run becomes `vocabulary_size - 1 - i`.
        lengths: int64 `[N]` with sum T, each at least 1: several examples end
            to end, each with sentinels of its own. None = one example.

    Returns:
        int32, shorter than T.

    Raises:
        ValueError: if the shapes differ.

    Example:
        mask = np.array([True, True, False, False, True, False])
        replace_spans(np.arange(10, 16), mask, 1000)  # 999 12 13 998 15
    """
    tokens, mask = np.asarray(tokens, np.int32), np.asarray(mask, bool)
    if tokens.ndim != 1 or tokens.shape != mask.shape:
        raise ValueError(
            "tokens and mask must have the same shape [T]; received "
            f"{tokens.shape} and {mask.shape}."
        )
    if not tokens.size:
        return tokens
    lengths = [tokens.size] if lengths is None else lengths
    starts = starts_of(np.asarray(lengths))
    first = mask.copy()
    first[1:] &= ~mask[:-1]
    first[starts] = mask[starts]
    number = np.cumsum(first)  # [T], runs so far in all examples
    number -= np.repeat(number[starts] - first[starts], lengths)
    replaced = np.where(first, vocabulary_size - number, tokens)
    return replaced[first | ~mask].astype(np.int32)


def random_segments(
    items: np.ndarray, segments: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Lengths of random pieces, each at least 1, of every example's items.

    Args:
        items: int64 `[N]`, how many items there are.
        segments: int64 `[N]`, in how many segments, at most `items`.
        rng: the random generator.

    Returns:
        int64 `[sum(segments)]`; every way to cut is as likely.
    """
    starts = starts_of(items)
    # Sorting by (example, random number) brings the items that begin a
    # segment to the front of their example; its first item always does.
    key = np.repeat(np.arange(items.size, dtype=np.float64), items)
    key += rng.random(key.size)
    key[starts] = np.arange(items.size)
    order = np.argsort(key, kind="stable")
    begins = np.sort(order[positions(starts, segments)])
    return np.diff(begins, append=key.size)


def append_eos(
    tokens: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eos behind every example; `lengths` count it."""
    with_eos = np.full(lengths.sum(), EOS_ID, np.int32)
    is_token = np.ones(with_eos.size, bool)
    is_token[np.cumsum(lengths) - 1] = False
    with_eos[is_token] = tokens
    return with_eos
