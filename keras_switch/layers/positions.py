"""Absolute positions, and the causal mask of models that have them."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_switch.layers.attention import MASKED
from keras_switch.layers.validation import check_choice, check_number

KINDS = ("learned", "sinusoidal")
_MAX_WAVELENGTH = 10000.0


@keras.saving.register_keras_serializable(package="keras_switch")
class PositionEmbedding(keras.layers.Layer):
    """Adds to each token a vector that says where it stands.

    Positions count from 0 at the first token of each row, or of each packed
    segment: padding on the left does not count, and a packed segment is what
    it would be in a row of its own.

    Args:
        kind: `"learned"`, a table drawn like the token embedding from
            `N(0, 1)`; or `"sinusoidal"`, sines and cosines of
            `D / 2` wavelengths from `2 pi` to `20000 pi`, without weights.
        max_length: Rows of the learned table; sinusoids need none.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        x: float `[B, T, D]`.
        padding_mask: optional int `[B, T]`: 0 for padding, 1 for a token, or
            packed segment ids from 1.
        offset: int, position of the first column; without `padding_mask`.

    Returns:
        `[B, T, D]`.

    Raises:
        ValueError: for more columns than `max_length`.

    Reference:
        [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762), 3.5, with
        sines before cosines as in tensor2tensor and fairseq
    """

    def __init__(
        self,
        kind: str = "sinusoidal",
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("kind", kind, KINDS)
        if kind == "learned":
            max_length = check_number(
                "max_length", max_length, whole=True, at_least=1
            )
        self.kind = kind
        self.max_length = max_length

    def build(self, x_shape):
        width = x_shape[-1]
        if self.kind == "learned":
            self.embeddings = self.add_weight(
                name="embeddings",
                shape=(self.max_length, width),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
            )
        elif width < 4 or width % 2:
            raise ValueError(
                "hidden_dim must be even and at least 4 with sinusoidal "
                f"positions; received {width}."
            )

    def call(self, x, padding_mask=None, offset=0):
        length = ops.shape(x)[1]
        self._check_length(length)
        if padding_mask is None:
            places = ops.arange(length, dtype="int32") + offset
            places = ops.expand_dims(places, 0)  # [1, T]
        else:
            places = places_in_segments(padding_mask)  # [B, T]
        return x + ops.cast(self._vectors(places, x.shape[-1]), x.dtype)

    def _vectors(self, places, width):
        if self.kind == "learned":
            # What lies beyond is padding: `generate` refuses tokens there.
            places = ops.minimum(places, self.max_length - 1)
            return ops.take(self.embeddings, places, axis=0)
        half = width // 2
        speeds = _MAX_WAVELENGTH ** (-np.arange(half) / (half - 1))
        angles = ops.expand_dims(ops.cast(places, "float32"), -1)
        speeds = ops.convert_to_tensor(speeds, "float32")
        angles = angles * speeds  # [B, T, D / 2]
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def _check_length(self, length):
        known = isinstance(length, int) and self.kind == "learned"
        if known and length > self.max_length:
            raise ValueError(
                f"A sequence must have at most {self.max_length} tokens, as "
                f"many as there are learned positions; received {length}."
            )

    def compute_output_spec(self, x, padding_mask=None, offset=0):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "kind": self.kind,
            "max_length": self.max_length,
        }


def places_in_segments(segments: Any) -> Any:
    """Each position's place within its run of equal segment ids.

    Args:
        segments: int `[B, T]`.

    Returns:
        int32 `[B, T]`, 0 where a run begins.
    """
    segments = ops.cast(segments, "int32")
    places = ops.zeros_like(segments) + ops.arange(
        ops.shape(segments)[1], dtype="int32"
    )
    begins = ops.concatenate(
        [
            ops.ones_like(segments[:, :1], dtype="bool"),
            segments[:, 1:] != segments[:, :-1],
        ],
        axis=1,
    )
    # Where a run began: its number is how many began so far.
    runs = ops.cumsum(ops.cast(begins, "int32"), axis=1)  # [B, T]
    earlier = ops.expand_dims(runs, 1) < ops.expand_dims(runs, 2)
    first = ops.sum(ops.cast(earlier, "int32"), axis=2)  # [B, T]
    return places - first


@keras.saving.register_keras_serializable(package="keras_switch")
class CausalBias(keras.layers.Layer):
    """The causal mask as a bias of attention, for models without a relative
    one: 0 for keys up to the query, `-1e9` for later ones.

    Call arguments:
        query: `[B, T, ...]`; only its length is read.
        key: optional `[B, S, ...]`; only its length is read. `query` if
            `None`.
        offset: int, position of the first query among the keys.

    Returns:
        float32 `[1, 1, T, S]`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Lengths are read, values are not: integers must stay what they are.
        self.autocast = False

    def call(self, query, key=None, offset=0):
        key = query if key is None else key
        queries = ops.arange(ops.shape(query)[1], dtype="int32") + offset
        keys = ops.arange(ops.shape(key)[1], dtype="int32")
        later = keys[None, :] > queries[:, None]  # [T, S]
        return ops.cast(later, "float32")[None, None] * MASKED

    def compute_output_spec(self, query, key=None, offset=0):
        key = query if key is None else key
        shape = (1, 1, query.shape[1], key.shape[1])
        return keras.KerasTensor(shape, dtype="float32")
