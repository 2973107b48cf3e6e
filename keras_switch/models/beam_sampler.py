"""Beam search that knows when a sequence has ended."""

from typing import Any

import keras
import keras_hub
from keras import ops, tree

from keras_switch.layers.validation import check_number

# Below any score that a sequence can have; finite, so that sums stay so.
_NEVER = -1e9


@keras.saving.register_keras_serializable(package="keras_switch")
class BeamSampler(keras_hub.samplers.Sampler):
    """Beam search with a pool of finished sequences.

    At each step the best `num_beams` unfinished sequences go on. One that ends
    leaves the beam and competes in the pool by its log-likelihood divided by
    `length ** length_penalty`, where the length is that of what was
    generated. The search is over once no unfinished sequence, divided by its
    present length, beats the worst of a full pool. These are the rules of
    `transformers`, and the sequences are the same.

    KerasHub's sampler of this name goes on past the stop token, and compares
    sequences by what follows it too.

    Args:
        num_beams: int, at least 1.
        length_penalty: float; 0 compares sums of log-likelihoods, 1 means,
            above 1 prefers long sequences.
        early_stopping: Whether to end as soon as `num_beams` sequences have.
        return_all_beams: Whether to return all of the pool, best first.
        temperature: float above 0; divides the logits.

    Call arguments:
        next: A function of `prompt`, `cache` and `index` that returns logits
            `[B, V]`, a state, and the cache.
        prompt: int `[B, T]`; rows of it are overwritten from `index` on,
            except where `mask` is true.
        cache: A structure of tensors whose first axis is `B`.
        index: int, first position to generate.
        mask: bool `[B, T]`.
        stop_token_ids: Ids that end a sequence, or `None`.

    Returns:
        int `[B, T]`; with `return_all_beams`, `[B, num_beams, T]` and their
        scores, float32 `[B, num_beams]`.
    """

    def __init__(
        self,
        num_beams: int = 5,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        return_all_beams: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_number("num_beams", num_beams, whole=True, at_least=1)
        check_number("length_penalty", length_penalty)
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.early_stopping = early_stopping
        self.return_all_beams = return_all_beams

    def __call__(
        self,
        next: Any,
        prompt: Any,
        cache: Any = None,
        index: Any = 0,
        mask: Any = None,
        stop_token_ids: Any = None,
        hidden_states: Any = None,
        model: Any = None,
    ) -> Any:
        index = ops.cast(index, "int32")
        if mask is None:
            mask = ops.zeros_like(prompt, dtype="bool")
        mask = ops.cast(mask, "bool")
        stops = () if stop_token_ids is None else tuple(stop_token_ids)
        # Where generation starts, row by row, [B, 1].
        lengths = ops.sum(ops.cast(mask, "int32"), axis=-1, keepdims=True)
        lengths = ops.maximum(lengths, index)
        cache = () if cache is None else cache

        def cond(prompt, cache, index, scores, pool):
            return ops.any(pool[3])

        def body(prompt, cache, index, scores, pool):
            logits, _, cache = next(_flat(prompt), cache, index)
            forced = ops.take(mask, index, axis=1)[:, None]  # [B, 1]
            totals, beam, token = self._candidates(
                logits, scores, prompt[:, 0], forced, index, stops
            )
            ends = _ends(token, stops, forced, index + 1 >= max_length)
            longer = _write(_rows(prompt, beam), token, index)
            length = ops.cast(index + 1 - lengths, "float32")
            pool = self._merged(pool, longer, totals, ends, length)
            running = totals + _NEVER * ops.cast(ends, "float32")
            best_scores, best = ops.top_k(running, k=self.num_beams)
            # TensorFlow's top_k forgets the shape.
            scores = ops.reshape(best_scores, ops.shape(scores))
            pool = (*pool[:3], self._seeks(pool, scores, length))
            chosen = _take(beam, best)
            cache = tree.map_structure(
                lambda x: _flat(_rows(self._unflat(x), chosen)), cache
            )
            return _rows(longer, best), cache, index + 1, scores, pool

        max_length = ops.shape(prompt)[1]
        prompt, scores, pool = self._start(prompt)
        cache = tree.map_structure(
            lambda x: ops.repeat(x, self.num_beams, axis=0), cache
        )
        *_, pool = self.run_loop(
            cond,
            body,
            loop_vars=(prompt, cache, index, scores, pool),
            maximum_iterations=max_length - index,
            model=model,
        )
        sequences, scores, _, _ = pool
        return (sequences, scores) if self.return_all_beams else sequences[:, 0]

    def _start(self, prompt):
        """Equal beams `[B, K, T]`, of which one counts, and an empty pool:
        sequences, scores, which places hold one, and which rows still seek."""
        prompt = ops.repeat(ops.expand_dims(prompt, 1), self.num_beams, axis=1)
        zeros = ops.zeros_like(prompt[:, :, 0], dtype="float32")  # [B, K]
        others = ops.cast(ops.arange(self.num_beams) > 0, "float32")
        seeks = ops.ones_like(prompt[:, :1, 0], dtype="bool")  # [B, 1]
        pool = (prompt, zeros + _NEVER, ops.cast(zeros, "bool"), seeks)
        return prompt, zeros + others * _NEVER, pool

    def _candidates(self, logits, scores, prompt, forced, index, stops):
        """Scores, beams and tokens of the best continuations, `[B, N]`."""
        beams, vocabulary = self.num_beams, ops.shape(logits)[-1]
        # Enough for `beams` to go on even if the best ones all end.
        kept = max(2, 1 + len(stops)) * beams
        logits = ops.cast(logits, "float32") / self.temperature
        totals = self._unflat(ops.log_softmax(logits, axis=-1))
        totals = totals + scores[:, :, None]  # [B, K, V]
        totals = ops.reshape(totals, (-1, beams * vocabulary))
        totals, place = ops.top_k(totals, k=kept)
        place = ops.cast(place, "int32")
        beam, token = place // vocabulary, place % vocabulary
        # In a prompt every beam stays what it is; the spare ones do not count.
        same = ops.zeros_like(beam) + ops.arange(kept, dtype="int32") % beams
        spare = ops.cast(ops.arange(kept) >= beams, "float32") * 2 * _NEVER
        totals = ops.where(forced, _take(scores, same) + spare, totals)
        beam = ops.where(forced, same, beam)
        given = ops.take(prompt, index, axis=1)[:, None]
        return totals, beam, ops.where(forced, given, token)

    def _unflat(self, x):
        """`[B * K, ...]` -> `[B, K, ...]`."""
        return ops.reshape(x, (-1, self.num_beams, *ops.shape(x)[1:]))

    def _merged(self, pool, longer, totals, ends, length):
        """The pool, with those of the best sequences that have ended."""
        sequences, scores, finished, seeks = pool
        best = ops.arange(ops.shape(totals)[1]) < self.num_beams
        ends = ops.logical_and(ops.logical_and(ends, best), seeks)
        new = totals / ops.maximum(length, 1.0) ** self.length_penalty
        # Twice: below an empty place of the pool, which may have `_NEVER`.
        new = ops.where(ends, new, 2 * _NEVER)
        scores = ops.concatenate([scores, new], axis=1)
        scores, place = ops.top_k(scores, k=self.num_beams)
        place = ops.cast(place, "int32")
        sequences = ops.concatenate([sequences, longer], axis=1)
        finished = ops.concatenate([finished, ends], axis=1)
        return (
            _rows(sequences, place),
            ops.reshape(scores, ops.shape(pool[1])),
            _take(finished, place),
            seeks,
        )

    def _seeks(self, pool, scores, length):
        """Whether a running sequence of a row may still enter its pool."""
        _, pool_scores, finished, seeks = pool
        full = ops.all(finished, axis=-1, keepdims=True)  # [B, 1]
        best = scores[:, :1] / ops.maximum(length, 1.0) ** self.length_penalty
        worst = ops.min(pool_scores, axis=-1, keepdims=True)
        hopeful = best > ops.where(full, worst, _NEVER)
        if self.early_stopping:
            hopeful = ops.logical_not(full)
        # A row that has given up once does not begin again while others go on.
        return ops.logical_and(seeks, hopeful)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            "return_all_beams": self.return_all_beams,
        }


def _flat(x):
    """`[B, K, ...]` -> `[B * K, ...]`."""
    return ops.reshape(x, (-1, *ops.shape(x)[2:]))


def _take(x, place):
    """Entries `[B, N]` of `[B, M]`."""
    return ops.take_along_axis(x, place, axis=1)


def _rows(x, place):
    """Rows `[B, N, ...]` of `[B, M, ...]`."""
    for _ in range(len(x.shape) - 2):
        place = ops.expand_dims(place, -1)
    return ops.take_along_axis(x, place, axis=1)


def _ends(token, stops, forced, no_room):
    """Which continuations `[B, N]` are the last of their sequence."""
    ends = ops.zeros_like(token, dtype="bool")
    for stop in stops:
        ends = ops.logical_or(ends, token == stop)
    # A stop token of the prompt does not end what is generated.
    ends = ops.logical_and(ends, ops.logical_not(forced))
    return ops.logical_or(ends, no_room)


def _write(sequences, token, index):
    """Writes `[B, N]` at one position of `[B, N, T]`."""
    here = ops.arange(ops.shape(sequences)[2], dtype="int32") == index
    token = ops.cast(ops.expand_dims(token, -1), sequences.dtype)
    return ops.where(here, token, sequences)
