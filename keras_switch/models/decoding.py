"""Decoding with caches: the part of generation that is compiled."""

import copy
import functools
from typing import Any, NamedTuple

from keras import ops

from keras_switch.models.generation_inputs import generated_names


class State(NamedTuple):
    """What travels along a sampler's loop; samplers copy it for beams.

    `caches` holds, for each layer, the pair that `TransformerLayer` takes;
    `context` what else `call_decoder` is given at every step, by name;
    `first_bad` is int32 `[B]`, the first position whose logits were not
    finite, `T` if all were.
    """

    caches: Any
    context: Any
    first_bad: Any


def decode(lm: Any, inputs: dict, stop_token_ids: Any = None) -> dict:
    """Reads the input and the prompt, then lets the sampler go on.

    A KerasHub sampler ends where its array ends. So a shape serves shorter
    sequences too: they stand at the right edge, after columns without any
    token.

    Args:
        lm: A task of this library.
        inputs: A dict: the model's inputs, and optionally
            `prompt_token_ids`, int `[B, P]`, the first tokens of each prompt
            (in which case the columns of the decoder's arrays that are padding
            in every row may come first). `P` is at least the length of the
            shortest prompt.
        stop_token_ids: Ids that end a sequence, or `None`.

    Returns:
        A dict of `[B, T]`: the generated ids; their mask, true up to the stop
        token; and a mask that is false where logits were not finite and from
        there on. See `Generated` for their names.
    """
    names = generated_names(inputs)
    token_ids = inputs[names.ids]
    mask = ops.cast(inputs[names.mask], "bool")
    length = ops.shape(token_ids)[1]
    positions = ops.arange(length, dtype="int32")  # [T]
    first = ops.cast(ops.argmax(ops.any(mask, axis=0)), "int32")
    # The start token is there, whatever the mask says.
    given = ops.logical_or(mask, positions <= first)
    hidden_states, state = read_prompt(lm, inputs)
    places = ops.clip(positions - first, 0, ops.shape(hidden_states)[1] - 1)
    sampler, states = _watched(lm.sampler, length)
    token_ids = sampler(
        next=functools.partial(next_token, lm, first),
        prompt=token_ids,
        cache=state,
        index=ops.min(ops.sum(ops.cast(given, "int32"), axis=-1)),
        mask=given,
        stop_token_ids=stop_token_ids,
        # Contrastive search compares with those before `index`.
        hidden_states=ops.take(hidden_states, places, axis=1),
        model=lm,
    )
    if isinstance(token_ids, tuple):
        raise ValueError(
            "The sampler must return one sequence a row; received several. "
            "Make it with return_all_beams=False."
        )
    return {
        names.ids: token_ids,
        names.mask: _up_to_stop(token_ids, given, stop_token_ids),
        names.finite: _finite(states, given),
    }


def read_prompt(lm: Any, inputs: dict) -> tuple[Any, State]:
    """Fills the caches with the prompts, and the encoder's output if any.

    Args:
        lm: A task of this library.
        inputs: As for `decode`.

    Returns:
        The decoder's output for the prompts, `[B, P, D]`, and the `State`.
    """
    token_ids = inputs[generated_names(inputs).ids]
    prompt_ids = inputs.get("prompt_token_ids", token_ids)
    batch_size, length = ops.shape(token_ids)
    encoded, context = encode(lm, inputs)
    encoder_length = None
    if encoded:
        encoder_length = ops.shape(inputs["encoder_token_ids"])[1]
    # A prompt's padding is behind it: no token of it sees the padding, and
    # the loop writes over what padding leaves in the caches.
    hidden_states, caches = lm.backbone.call_decoder(
        prompt_ids,
        caches=_empty_caches(lm, batch_size, length, encoder_length),
        cache_update_index=0,
        **encoded,
        **context,
    )
    first_bad = ops.full((batch_size,), length, dtype="int32")
    return hidden_states, State(caches, context, first_bad)


def encode(lm: Any, inputs: dict) -> tuple[dict, dict]:
    """What `call_decoder` is given once, and what at every step.

    Args:
        lm: A task of this library.
        inputs: As for `decode`.

    Returns:
        Two dicts of arguments: `encoder_output`, `[B, S, D]`, and
        `encoder_padding_mask`, int32 `[B, S]`; both empty without an encoder.
    """
    if "encoder_token_ids" not in inputs:
        return {}, {}
    # One segment: whatever the ids, the prompt may see the input.
    mask = ops.cast(inputs["encoder_padding_mask"], "bool")
    mask = ops.cast(mask, "int32")
    output = lm.backbone.call_encoder(inputs["encoder_token_ids"], mask)
    return {"encoder_output": output}, {"encoder_padding_mask": mask}


def next_token(
    lm: Any, first: Any, prompt: Any, cache: State, index: Any
) -> tuple[Any, Any, State]:
    """Reads the token before `index`.

    Args:
        lm: A task of this library.
        first: int, the column of the start token.
        prompt: int `[B, T]`.
        cache: The `State`.
        index: int, the column whose logits are wanted.

    Returns:
        Logits, float32 `[B, V]`, finite; the decoder's output, `[B, D]`; and
        the `State`.
    """
    token_ids = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
    hidden_states, caches = lm.backbone.call_decoder(
        # A sampler that walks from column 1 on meets what is no token.
        ops.maximum(token_ids, 0),
        caches=cache.caches,
        cache_update_index=ops.maximum(index - 1 - first, 0),
        **cache.context,
    )
    logits = lm._logits(hidden_states)[:, 0]  # [B, V]
    finite = ops.all(ops.isfinite(logits), axis=-1)
    # Samplers differ in what they make of NaN, from an error to a token.
    logits = ops.where(finite[:, None], logits, 0.0)
    bad = ops.where(finite, cache.first_bad, ops.cast(index, "int32"))
    first_bad = ops.minimum(cache.first_bad, bad)
    state = State(caches, cache.context, first_bad)
    return logits, hidden_states[:, 0], state


def _empty_caches(lm, batch_size, length, encoder_length):
    """Of each layer: keys and values of itself, and of the encoder."""

    def pair(attention, size):
        heads = attention.num_key_value_heads
        shape = (batch_size, heads, size, attention.key_value_dim)
        return tuple(ops.zeros(shape, lm.compute_dtype) for _ in range(2))

    def both(layer):
        own = pair(layer.self_attention, length)
        if encoder_length is None:
            return own, ()
        return own, pair(layer.cross_attention_layer, encoder_length)

    return [both(layer) for layer in lm.backbone.stacks["decoder"]]


def _watched(sampler, length):
    """A copy of a sampler that leaves the last `State` of its loop in a list.

    The list stays empty if the sampler does not call its `run_loop`.
    """
    states = []
    sampler = copy.copy(sampler)  # The original's random state is shared.
    run_loop = getattr(sampler, "run_loop", None)

    def state_of(loop_vars):
        return next((v for v in loop_vars if isinstance(v, State)), None)

    def watched_loop(cond, body, *args, **kwargs):
        def still(*loop_vars):
            going, state = cond(*loop_vars), state_of(loop_vars)
            if state is None:
                return going
            # Nothing is left to do once no row has finite logits.
            return ops.logical_and(going, ops.any(state.first_bad >= length))

        loop_vars = run_loop(still, body, *args, **kwargs)
        states[:] = [state_of(loop_vars)]
        return loop_vars

    if run_loop is not None:
        sampler.run_loop = watched_loop
    return sampler, states


def _finite(states, given):
    """Bool `[B, T]`; for the worst of a row's beams, if it has several."""
    if not states or states[0] is None:
        return ops.ones_like(given)
    rows, length = ops.shape(given)
    first_bad = ops.reshape(states[0].first_bad, (rows, -1))
    first_bad = ops.min(first_bad, axis=1, keepdims=True)  # [B, 1]
    return ops.arange(length, dtype="int32") < first_bad


def _up_to_stop(token_ids, given, stop_token_ids):
    """True up to the first stop token that is not of the prompt."""
    stops = ops.zeros_like(given)
    for stop_token_id in stop_token_ids or ():
        stops = ops.logical_or(stops, token_ids == stop_token_id)
    stops = ops.logical_and(stops, ops.logical_not(given))
    stops = ops.cast(stops, "int32")
    return ops.cumsum(stops, axis=-1) - stops == 0
