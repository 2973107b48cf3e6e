"""Strings in a graph of TensorFlow, the only place where they are tensors."""

import re
from collections.abc import Callable, Mapping
from typing import Any


def encode_around(
    strings: Any, tokens: Mapping[str, Any], encode: Callable[[Any], Any]
) -> Any:
    """Encodes what stands between some tokens, and puts their ids there.

    Args:
        strings: A string tensor `[B]` of UTF-8.
        tokens: Ids (or what else `encode` gives) by the token's spelling.
        encode: Encodes a string tensor `[N]` as a ragged one `[N, (ids)]`;
            an empty string as no ids.

    Returns:
        A ragged tensor `[B, (ids)]`.

    Raises:
        tensorflow.errors.InvalidArgumentError: when it runs, if a string is
            not UTF-8.
    """
    import tensorflow as tf

    strings = tf.strings.unicode_transcode(
        strings, "UTF-8", "UTF-8", errors="strict"
    )
    if not tokens:
        return encode(strings)
    # A byte that UTF-8 never holds: no text can have it.
    pattern = "|".join(map(re.escape, tokens))
    strings = tf.strings.regex_replace(strings, f"({pattern})", b"\xff\\1\xff")
    parts = tf.strings.split(strings, b"\xff")  # [B, (N)]
    text = parts.flat_values  # [N]
    is_token = text[:, None] == tf.constant(list(tokens))  # [N, tokens]
    ids = tf.broadcast_to(list(tokens.values()), tf.shape(is_token))
    token_ids = tf.ragged.boolean_mask(ids, is_token)  # [N, (0 or 1)]
    text = tf.where(tf.reduce_any(is_token, axis=1), "", text)
    ids = encode(text)
    ids = tf.concat([ids, tf.cast(token_ids, ids.dtype)], axis=1)
    rows = tf.RaggedTensor.from_row_splits(ids, parts.row_splits)
    return rows.merge_dims(1, 2)


def enclose(ids: Any, before: list, after: list) -> Any:
    """Puts the same ids before and after every row of a ragged tensor.

    Args:
        ids: Ragged `[B, (ids)]`.
        before: Ids to put before.
        after: Ids to put after.
    """
    import tensorflow as tf

    if not before and not after:
        return ids
    before, after = (
        tf.tile(tf.constant([part], ids.dtype), [ids.nrows(), 1])
        for part in (before, after)
    )
    return tf.concat([before, ids, after], axis=1)
