"""Strings in and out of a SavedModel: TensorFlow's part of an export."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any


def check_text() -> None:
    """Refuses strings where their operations are not installed.

    Raises:
        ImportError: without tensorflow-text.
    """
    if importlib.util.find_spec("tensorflow_text") is None:
        raise ImportError(
            "text=True needs the package tensorflow-text, which cuts strings "
            "inside of a SavedModel: pip install tensorflow-text."
        )


def add_text_endpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    pack: Callable[[Any], Mapping[str, Any]],
    unpack: Callable[[Mapping[str, Any]], Any],
    tokenizer: Any,
    batch_size: int | None,
) -> None:
    """Writes a SavedModel again, with a signature `generate_text`.

    Args:
        source: Folder of a SavedModel whose default signature takes and
            returns arrays.
        target: Folder to write to.
        pack: From a string tensor `[B]` to what that signature takes.
        unpack: From what it returns to a string tensor `[B]`.
        tokenizer: What holds the vocabulary, of tensorflow-text.
        batch_size: `B`, or `None` for any.
    """
    import tensorflow as tf

    module = tf.Module()
    # What a function uses is saved if the module can reach it.
    module.served = tf.saved_model.load(os.fspath(source))
    module.tokenizer = tokenizer
    module.generate = module.served.generate
    generate = module.served.signatures["serving_default"]
    strings = tf.TensorSpec([batch_size], tf.string, name="texts")

    @tf.function(input_signature=[strings])
    def generate_text(texts):
        packed = {n: tf.cast(a, tf.int32) for n, a in pack(texts).items()}
        return {"texts": unpack(generate(**packed))}

    signatures = {"serving_default": generate, "generate_text": generate_text}
    # Gradients are of no use to a server, and those of its custom functions
    # cannot be saved twice.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, os.fspath(target), signatures, options)


def kept_ids(
    ids: Any, keep: Any, dropped: list[int], size: int, unknown: int
) -> Any:
    """Some ids of each row, as a tokenizer of tensorflow-text takes them.

    Args:
        ids: int32 `[B, T]`.
        keep: bool `[B, T]`.
        dropped: Ids that are left out wherever they are.
        size: Of the vocabulary.
        unknown: What stands for ids from `size` on.

    Returns:
        Ragged int32 `[B, (ids)]`.
    """
    import tensorflow as tf

    is_dropped = tf.reduce_any(ids[..., None] == dropped, axis=-1)
    ids = tf.where(ids < size, ids, unknown)
    return tf.ragged.boolean_mask(ids, keep & ~is_dropped)
