"""What `generate` is given: arguments and inputs, checked at the door."""

import reprlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_switch.layers.validation import check_choice, check_number

ARRAYS = (
    "encoder_token_ids",
    "encoder_padding_mask",
    "decoder_token_ids",
    "decoder_padding_mask",
)
CAUSAL_ARRAYS = ("token_ids", "padding_mask")


class Generated(NamedTuple):
    """What the arrays of the generated sequence are called."""

    ids: str
    mask: str
    finite: str


def generated_names(names: Iterable[str]) -> Generated:
    """The names among those of a model's inputs, or of its outputs."""
    stack = "decoder_" if "decoder_token_ids" in names else ""
    kinds = ("token_ids", "padding_mask", "finite_mask")
    return Generated(*(f"{stack}{kind}" for kind in kinds))


class Request(NamedTuple):
    """Checked arguments of `generate`."""

    max_length: int | None
    max_new_tokens: int | None
    stop_token_ids: tuple[int, ...] | None
    strip_prompt: bool
    seed: int | None
    truncate: bool
    allow_batch_dependent: bool
    max_cache_bytes: int


def check_request(
    lm: Any, stop_token_ids: Any, seed: Any, max_cache_bytes: Any, **others: Any
) -> Request:
    """Checks arguments of `generate`.

    Raises:
        ValueError: naming the argument, what it must be and what came.
    """
    check_number("max_cache_bytes", max_cache_bytes, whole=True, at_least=1)
    if seed is not None:
        check_number("seed", seed, whole=True, at_least=0, below=2**64)
        seed = int(seed)
    for name in ("strip_prompt", "truncate", "allow_batch_dependent"):
        check_choice(name, others[name], (True, False))
    names = ("max_length", "max_new_tokens")
    return Request(
        *_check_lengths(*(others.pop(name) for name in names)),
        stop_token_ids=_check_stop_token_ids(stop_token_ids, lm),
        seed=seed,
        max_cache_bytes=int(max_cache_bytes),
        **others,
    )


def _check_lengths(max_length, max_new_tokens):
    if max_length is not None and max_new_tokens is not None:
        raise ValueError(
            "max_length and max_new_tokens exclude each other; received "
            f"max_length={max_length!r}, max_new_tokens={max_new_tokens!r}."
        )
    checked = []
    for name, value in (
        ("max_length", max_length),
        ("max_new_tokens", max_new_tokens),
    ):
        if value is not None:
            check_number(name, value, whole=True, at_least=1, below=2**31)
        checked.append(None if value is None else int(value))
    return checked


def _check_stop_token_ids(stop_token_ids, lm):
    """The ids as a tuple of ints, or `None` where nothing stops a row."""
    if stop_token_ids is None:
        return None
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        if lm.preprocessor is None:
            raise ValueError(
                "stop_token_ids must be None or ids where there is no "
                "preprocessor to ask; received stop_token_ids='auto', "
                "preprocessor=None."
            )
        return (int(lm.preprocessor.tokenizer.end_token_id),)
    size = lm.backbone.vocabulary_size
    ids = np.asarray(stop_token_ids)
    if ids.ndim == 1 and not ids.size:
        return None
    whole = np.issubdtype(ids.dtype, np.integer)
    if ids.ndim != 1 or not whole or ids.min() < 0 or ids.max() >= size:
        raise ValueError(
            "stop_token_ids must be 'auto', None or ids of at least 0 and "
            f"below {size}; received {reprlib.repr(stop_token_ids)}."
        )
    return tuple(ids.tolist())


def read_inputs(inputs: Any, lm: Any) -> tuple[Iterable[dict], bool]:
    """Checked batches of what `generate` was given.

    Args:
        inputs: See `SparseLM.generate`.
        lm: A task of this library.

    Returns:
        Batches, and whether a single string was given. With a preprocessor, a
        batch is a dict of lists of strings, `encoder_text` and
        `decoder_text`, or `prompts`; without, a dict of int32 arrays, named
        as the model's inputs.

    Raises:
        ValueError: naming the argument, what it must be and what came.
    """

    def check(batch):
        if lm.preprocessor is None:
            size = lm.backbone.vocabulary_size
            return check_arrays(batch, size, lm.input_names), False
        if lm.input_names == ARRAYS:
            return check_texts(batch)
        prompts, is_scalar = check_strings("inputs", batch)
        return {"prompts": prompts}, is_scalar

    # A `tf.data.Dataset`.
    if hasattr(inputs, "as_numpy_iterator"):
        return (check(batch)[0] for batch in inputs.as_numpy_iterator()), False
    batch, is_scalar = check(inputs)
    return [batch], is_scalar


def check_texts(inputs: Any) -> tuple[dict[str, list[str]], bool]:
    """Texts for the encoder and prompts for the decoder, `""` by default.

    Returns:
        A dict of equally long lists, and whether single strings were given.
    """
    if not isinstance(inputs, dict):
        texts, is_scalar = check_strings("inputs", inputs)
        return _with_prompts(texts), is_scalar
    names = {"encoder_text", "decoder_text"}
    if "encoder_text" not in inputs or set(inputs) - names:
        raise ValueError(
            "inputs must have the keys 'encoder_text' and, optionally, "
            f"'decoder_text'; received {reprlib.repr(list(inputs))}."
        )
    texts, is_scalar = check_strings("encoder_text", inputs["encoder_text"])
    if "decoder_text" not in inputs:
        return _with_prompts(texts), is_scalar
    prompts, is_also = check_strings("decoder_text", inputs["decoder_text"])
    if len(prompts) != len(texts) or is_scalar != is_also:
        raise ValueError(
            "decoder_text must be a string for each encoder_text; received "
            f"{_count(prompts, is_also)} for {_count(texts, is_scalar)}."
        )
    return {"encoder_text": texts, "decoder_text": prompts}, is_scalar


def _with_prompts(texts):
    return {"encoder_text": texts, "decoder_text": [""] * len(texts)}


def _count(texts, is_scalar):
    return "a string" if is_scalar else f"a list of {len(texts)}"


def check_strings(name: str, value: Any) -> tuple[list[str], bool]:
    """A list of strings from a string or any batch of them; UTF-8 is decoded.

    Returns:
        The list, and whether it was a single string.

    Raises:
        ValueError: naming the string that is none.
    """
    if hasattr(value, "numpy"):
        value = value.numpy()  # a tensor of TensorFlow's
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    is_scalar = isinstance(value, str | bytes)
    if not is_scalar and not isinstance(value, list | tuple):
        raise ValueError(
            f"{name} must be a string or a list of strings; received "
            f"{reprlib.repr(value)}."
        )
    if is_scalar:
        return [_string(name, value)], True
    return [_string(f"{name}[{i}]", v) for i, v in enumerate(value)], False


def _string(name, value):
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")  # fails on half of a surrogate pair
            return str(value)
    except UnicodeError as error:
        raise ValueError(
            f"{name} must be valid Unicode; received {reprlib.repr(value)}: "
            f"{error.reason} at {error.start}."
        ) from error
    raise ValueError(
        f"{name} must be a string; received {reprlib.repr(value)}."
    )


def check_arrays(
    inputs: Any, vocabulary_size: int, names: tuple[str, ...] = ARRAYS
) -> dict[str, np.ndarray]:
    """The model's inputs as int32 arrays, masks of 0 and 1.

    What ids padding has does not matter: the encoder's become 0, and the
    decoder's are written over.

    Args:
        inputs: What came.
        vocabulary_size: Ids are below it.
        names: Pairs of ids and their mask, the generated ones last.
    """
    if not isinstance(inputs, dict) or set(inputs) != set(names):
        keys = list(inputs) if isinstance(inputs, dict) else inputs
        raise ValueError(
            "inputs must be a dict of token ids where there is no "
            f"preprocessor, with the keys {', '.join(names)}; received "
            f"{reprlib.repr(keys)}."
        )
    x = {name: _whole_numbers(name, inputs[name]) for name in names}
    rows = len(x[names[0]])
    for ids_name, mask_name in zip(names[::2], names[1::2], strict=True):
        ids, mask = x[ids_name], x[mask_name]
        if ids.shape != mask.shape or len(ids) != rows or not ids.shape[1]:
            raise ValueError(
                f"{ids_name} and its mask must have the shape ({rows}, "
                f"at least 1); received {ids.shape} and {mask.shape}."
            )
        mask = mask != 0
        used = np.where(mask, ids, 0)
        if used.size and (used.min() < 0 or used.max() >= vocabulary_size):
            raise ValueError(
                f"{ids_name} must be at least 0 and below "
                f"{vocabulary_size}; received {used.min()} to {used.max()}."
            )
        ids = used if ids_name == "encoder_token_ids" else ids
        x[ids_name] = ids.astype("int32")
        x[mask_name] = mask.astype("int32")
    _check_prefix(names[-1], x[names[-1]])
    return x


def _whole_numbers(name, value):
    array = np.asarray(ops.convert_to_numpy(value))
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(
            f"{name} must be whole numbers of rank 2; received "
            f"{array.dtype} of shape {array.shape}."
        )
    return array


def _check_prefix(name, mask):
    if (np.diff(mask, axis=1) > 0).any():
        raise ValueError(
            f"{name} must mark the first tokens of each row, the "
            "prompt; received a row with padding before a token."
        )
