"""What `generate` does round the compiled part: checks, shapes, seeds."""

import contextlib
import reprlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras_hub
import numpy as np
from keras import ops

from keras_switch.models.generation_inputs import (
    Generated,
    Request,
    generated_names,
)
from keras_switch.ops.layout import by_dtensor, data_shards, on_devices
from keras_switch.ops.state import fetched

# In a column that holds no token: no stop token, whatever those are.
_NOTHING = -1
_OF_DECODER = generated_names(("decoder_token_ids",))


def generate_batch(lm: Any, batch: dict, request: Request, part: int) -> Any:
    """Generates for one batch.

    Args:
        lm: A task of this library.
        batch: From `generation_inputs.read_inputs`.
        request: What was asked for.
        part: Which batch of the call this is.

    Returns:
        A list of strings; without preprocessor, a dict of int and bool arrays,
        the ids and the mask of the generated sequence.

    Raises:
        ValueError: if a text is too long, or the caches would be too large.
        FloatingPointError: if logits were not finite.
    """
    has_text = lm.preprocessor is not None
    if has_text and not next(iter(batch.values())):
        return []
    _check_rows(lm, batch, request)
    x = _tokens(lm, batch, request)
    names = generated_names(x)
    lengths = prompt_lengths(x)
    ends = _ends(x, request)  # [B]
    if not len(ends):
        empty = np.zeros((0, request.max_length or 0), "int32")
        return {names.ids: empty, names.mask: empty != 0}
    width = int(ends.max())
    outputs = cut(_run(lm, x, width, request, part), ends, lm)
    if request.strip_prompt:
        outputs[names.mask] &= np.arange(width) >= lengths[:, None]
    if has_text:
        return lm.preprocessor.generate_postprocess(outputs)
    return outputs


def _check_rows(lm, batch, request):
    """Refuses rows that would take room from each other, unless asked to."""
    rows = len(next(iter(batch.values())))
    dependent = lm.is_batch_dependent and not request.allow_batch_dependent
    if rows > 1 and dependent:
        raise ValueError(
            "inputs must have one row where experts have a capacity in "
            "evaluation: the rows of a batch change each other's results; "
            f"received {rows} rows. allow_batch_dependent=True runs them "
            "together."
        )


def _run(lm, x, width, request, part):
    """The outputs of the compiled part, as NumPy arrays."""
    _check_not_on_dtensor()
    _check_positions(width, lm)
    shape = shape_of(x, width, lm)
    check_cache(shape, lm, request.max_cache_bytes)
    stops = request.stop_token_ids
    padded = pad(x, shape, width, stops)
    with exclusive(lm.sampler, request.seed, part):
        function = lm.make_generate_function()
        outputs = function(on_devices(padded), stop_token_ids=stops)
        # Here, because JAX may still be computing them.
        return {k: fetched(v) for k, v in outputs.items()}


def _check_not_on_dtensor():
    if by_dtensor():
        raise RuntimeError(
            "generate over a mesh needs the JAX backend: TensorFlow's DTensor "
            "cannot update a cache. Save the model with save_to_preset, and "
            "load it where no distribution is set, or with KERAS_BACKEND=jax."
        )


def _check_positions(length, lm):
    longest = getattr(lm.backbone, "max_sequence_length", None)
    if longest is not None and length > longest:
        raise ValueError(
            f"max_length must be at most {longest}, the backbone's "
            f"max_sequence_length; received a prompt and an answer of {length} "
            "tokens."
        )


def _tokens(lm, batch, request):
    """A dict of arrays from one of strings or arrays."""
    if lm.preprocessor is None:
        return _cut_prompts(batch, request.max_length, request.truncate)
    least = request.max_length or request.max_new_tokens or 1
    rows = len(next(iter(batch.values())))
    # Before anything is padded to that length.
    check_cache(Shape(rows, 1, least, 1), lm, request.max_cache_bytes)
    x = lm.preprocessor.generate_preprocess(
        batch.get("prompts", batch),
        sequence_length=request.max_length,
        truncate=request.truncate,
    )
    return {name: ops.convert_to_numpy(value) for name, value in x.items()}


def _cut_prompts(x, longest, truncate):
    """Cuts the decoder's arrays, or refuses to if tokens would be lost."""
    names = generated_names(x)
    mask = x[names.mask]
    if longest is None or mask.shape[1] <= longest:
        return x
    lost = mask[:, longest:].any(axis=1)
    if lost.any() and not truncate:
        row = int(np.argmax(lost))
        raise ValueError(
            f"max_length must be at least the length of a prompt, "
            f"{mask[row].sum()} in row {row}; received max_length={longest}. "
            "truncate=True cuts prompts."
        )
    cut_off = {name: x[name][:, :longest] for name in (names.ids, names.mask)}
    return {**x, **cut_off}


def _ends(x, request):
    """Where each row ends at the latest: int `[B]`."""
    if request.max_new_tokens is not None:
        return prompt_lengths(x).astype("int64") + request.max_new_tokens
    rows, width = x[generated_names(x).ids].shape
    return np.full(rows, request.max_length or width)


def prompt_lengths(x: dict) -> np.ndarray:
    """Tokens of each prompt, at least 1: the start token is always there."""
    return np.maximum(x[generated_names(x).mask].sum(axis=1), 1)


class Shape(NamedTuple):
    """Sizes of the arrays that the compiled part is given."""

    rows: int
    encoder: int  # 0 without one
    decoder: int
    prompt: int


def bucket(size: int, smallest: int = 1, largest: int | None = None) -> int:
    """The next power of two, from 128 on the next multiple of 128.

    Args:
        size: At least 1.
        smallest: A power of two.
        largest: Taken instead, where `size` fits into it and the bucket does
            not.
    """
    if size > 128:
        wanted = -(-size // 128) * 128
    else:
        wanted = max(smallest, 1 << (size - 1).bit_length())
    if largest is not None and size <= largest:
        return min(wanted, largest)
    return wanted


def shape_of(x: dict, length: int, lm: Any) -> Shape:
    """The shape a batch is padded to, so that few shapes are compiled.

    Args:
        x: A dict of the model's inputs.
        length: Of the decoder's sequence.
        lm: A task of this library.
    """
    encoder_limit, decoder_limit = _limits(lm)
    rows = len(x[generated_names(x).ids])
    prompt = int(prompt_lengths(x).min())
    decoder = bucket(length, 16, decoder_limit)
    used = width = 0
    if "encoder_padding_mask" in x:
        width = x["encoder_padding_mask"].shape[1]
        used = np.flatnonzero(x["encoder_padding_mask"].any(axis=0))
        used = bucket(int(used[-1]) + 1 if len(used) else 1, 16, encoder_limit)
    shards = data_shards()
    if lm.backbone.is_batch_dependent:  # padding takes room, too
        return Shape(-(-rows // shards) * shards, width, decoder, prompt)
    return Shape(
        -(-bucket(rows) // shards) * shards,
        used,
        decoder,
        bucket(prompt, 1, decoder),
    )


def _limits(lm):
    """Lengths that buckets of the encoder and the decoder need not exceed."""
    names = ("decoder_sequence_length", "sequence_length")
    found = [getattr(lm.preprocessor, name, None) for name in names]
    found.append(getattr(lm.backbone, "max_sequence_length", None))
    known = [length for length in found if length is not None]
    encoder = getattr(lm.preprocessor, "encoder_sequence_length", None)
    return encoder, min(known, default=None)


def check_cache(shape: Shape, lm: Any, max_cache_bytes: int) -> None:
    """Refuses what would take more memory than allowed, before it is taken.

    Raises:
        ValueError: naming the estimate and the limit.
    """
    backbone, sampler = lm.backbone, lm.sampler
    beams = getattr(sampler, "num_beams", 1)
    if isinstance(sampler, keras_hub.samplers.ContrastiveSampler):
        beams = sampler.k
    itemsize = {"float64": 8, "float32": 4}.get(lm.compute_dtype, 2)
    heads = sum(
        layer.self_attention.num_key_value_heads
        for layer in backbone.stacks["decoder"]
    )
    token = 2 * heads * backbone.key_value_dim * itemsize
    wanted = shape.rows * beams * (shape.encoder + shape.decoder) * token
    if wanted > max_cache_bytes:
        raise ValueError(
            f"max_cache_bytes must be at least {wanted:,} for the keys and "
            f"values of {shape.rows} rows of {beams} beams with "
            f"{shape.encoder:,} tokens in and up to {shape.decoder:,} out; "
            f"received max_cache_bytes={max_cache_bytes:,}."
        )


def pad(x: dict, shape: Shape, length: int, stop_token_ids: Any) -> dict:
    """Arrays of the given shape; decoder rows end at their right edge.

    Rows are added by repeating the first one, so that they are as finite as
    it is, and need no experts of their own.

    Args:
        x: A dict of the model's inputs.
        shape: What to pad to.
        length: Of the decoder's sequence.
        stop_token_ids: A tuple, or `None`.

    Returns:
        What `decoding.decode` takes.
    """
    names = generated_names(x)
    rows = len(x[names.ids])
    padded = {name: _columns(array, shape.encoder) for name, array in x.items()}
    mask = _columns(x[names.mask], length)
    mask[:, 0] = 1
    ids = _columns(x[names.ids], length)
    padded["prompt_token_ids"] = _columns(ids * mask, shape.prompt)
    # Padding is not to be taken for the end of a row.
    is_stop = np.isin(ids, stop_token_ids or ()) & (mask == 0)
    ids = np.where(is_stop, _NOTHING, ids)
    left = ((0, 0), (shape.decoder - length, 0))
    padded[names.ids] = np.pad(ids, left, constant_values=_NOTHING)
    padded[names.mask] = np.pad(mask, left)
    source = np.arange(shape.rows)
    source[rows:] = 0
    padded = {name: array[source] for name, array in padded.items()}
    if stop_token_ids and not mask[:1, -1].any():
        # A loop ends when all rows have a stop token: added rows have one.
        padded[names.ids][rows:, -1] = stop_token_ids[0]
    return {name: array.astype("int32") for name, array in padded.items()}


def _columns(array, width):
    """Cuts, or fills up with 0, to a width."""
    missing = max(0, width - array.shape[1])
    return np.pad(array[:, :width], ((0, 0), (0, missing)))


def cut(outputs: dict, ends: np.ndarray, lm: Any) -> dict:
    """The rows and columns that were asked for.

    Args:
        outputs: What `decoding.decode` returns.
        ends: int `[rows]`, where each row asked for ends at the latest.
        lm: A task of this library.

    Returns:
        A dict of the ids, 0 behind the end of a row, and their mask,
        `[rows, max(ends)]`.

    Raises:
        FloatingPointError: if logits were not finite.
    """
    rows, width = len(ends), int(ends.max())
    names = generated_names(outputs)
    ids, mask, finite = (
        np.array(outputs[name])[:rows, -width:] for name in names
    )
    mask &= np.arange(width) < ends[:, None]
    bad = np.flatnonzero((mask & ~finite).any(axis=1))
    if len(bad):
        raise FloatingPointError(
            f"Logits of rows {reprlib.repr(bad.tolist())} are not finite. The "
            "weights are not, or something exceeds the range of "
            f"{lm.compute_dtype}."
        )
    ids[~mask] = 0
    return {names.ids: ids, names.mask: mask}


def join(outputs: list[dict], names: Generated = _OF_DECODER) -> dict:
    """Batches one below the other; narrow ones are filled up with padding."""
    if len(outputs) == 1:
        return outputs[0]
    width = max((x[names.ids].shape[1] for x in outputs), default=0)
    return {
        name: np.concatenate(
            [np.zeros((0, width), dtype)]
            + [_columns(x[name], width) for x in outputs]
        )
        for name, dtype in ((names.ids, "int32"), (names.mask, "bool"))
    }


_LOCKS = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


@contextlib.contextmanager
def exclusive(sampler: Any, seed: int | None, part: int = 0) -> Iterator[None]:
    """One thread at a time, with a random state that depends on `seed` alone.

    A sampler's random state is read when a compiled function starts and
    written when it ends: of two threads at once, one would repeat the other's
    draws. The state that a seed replaces comes back afterwards.

    Args:
        sampler: A KerasHub sampler; models may share it.
        seed: int, or `None` to go on with the sampler's own state.
        part: Which batch of the call this is: each draws differently.
    """
    with _GUARD:
        lock = _LOCKS.setdefault(sampler, threading.RLock())
    with lock:
        variables = [] if seed is None else getattr(sampler, "variables", [])
        # Copies: an array may share the memory of its variable.
        before = [np.array(ops.convert_to_numpy(v.value)) for v in variables]
        try:
            for i, variable in enumerate(variables):
                variable.assign(_random_state(seed, part, i))
            yield
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)


def _random_state(*numbers):
    # Hashed: torch adds the two halves of a state, so that the draws of
    # neighbouring seeds would be each other's, a step apart. 31 bits are what
    # its dtype holds.
    state = np.random.SeedSequence(numbers).generate_state(2)
    return (state >> 1).astype("int64")
