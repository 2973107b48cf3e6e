"""Attention with a cache: as T5 has it, and as decoder-only models do."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_switch.layers.feed_forward import initializer
from keras_switch.layers.policies import policy_config, policy_of
from keras_switch.layers.rotary import check_rotary, rotate
from keras_switch.layers.validation import check_number
from keras_switch.ops.export import starts
from keras_switch.ops.shared_add import shared_add

# Added to a score that must not be seen. Scores are float32 under every dtype
# policy, so it is finite there, and exp(score - max) is exactly 0.
MASKED = -1e9


@keras.saving.register_keras_serializable(package="keras_switch")
class Attention(keras.layers.Layer):
    """Multi-head attention, T5's by default, with an optional cache.

    Scores are not divided by `sqrt(key_value_dim)`: T5 folds that factor into
    the initial scale of the query kernel. Scores, mask and softmax are float32
    whatever the dtype policy. Without `context` it is self-attention, with it
    cross-attention.

    A cache is a pair of keys and values, `[B, K, S, H]` each: the order that a
    product over batch and heads reads without a copy. With `cache_update_index`
    the keys and values of this call are written from that row on; without it
    the cache is read as it is (cross-attention after the first step), and
    `context` is not looked at.

    Args:
        num_heads: Number of heads, `N`.
        key_value_dim: Width of a head, `H`; free of `D / N`.
        dropout: Dropout rate of the attention weights.
        init_scale: Scale of the initial variance `init_scale / fan_in`.
        num_key_value_heads: Heads of keys and values, `K`, each shared by
            `N / K` consecutive heads of queries; `None`: `N`.
        use_bias: Whether the four projections have biases.
        scaled: Whether to divide scores by `sqrt(key_value_dim)`; the initial
            scale then has no such factor.
        rotary_max_wavelength: Base of rotary positions (see `rotary.rotate`);
            `None` for none. For self-attention.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        x: float `[B, T, D]`, the queries' side.
        context: optional float `[B, S, D]`, the keys' side; `x` if `None`.
        attention_mask: optional `[B, T, S]`, nonzero where a query may see a
            key. A query that sees none attends to all alike and stays finite.
        position_bias: optional float `[1 or B, N, T, S]`, added to the
            scores; see `RelativePositionBias`.
        cache: optional pair of floats `[B, K, S, H]`.
        cache_update_index: optional int, row of the cache to write at.
        training: Whether dropout acts.

    Returns:
        `[B, T, D]`, or a pair of it and the cache if `cache` was given.

    Example:

    ```python
    attention = keras_switch.layers.Attention(num_heads=4, key_value_dim=16)
    y = attention(np.random.normal(size=(2, 5, 64)))  # [2, 5, 64]
    ```

    Reference:
        [T5 (Raffel et al., 2020)](https://arxiv.org/abs/1910.10683);
        [grouped queries (Ainslie et al.,
        2023)](https://arxiv.org/abs/2305.13245)
    """

    def __init__(
        self,
        num_heads: int,
        key_value_dim: int,
        dropout: float = 0.0,
        init_scale: float = 0.1,
        num_key_value_heads: int | None = None,
        use_bias: bool = False,
        scaled: bool = False,
        rotary_max_wavelength: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_number("num_heads", num_heads, whole=True, at_least=1)
        check_number("key_value_dim", key_value_dim, whole=True, at_least=1)
        check_number("dropout", dropout, at_least=0, below=1)
        check_number("init_scale", init_scale, above=0)
        check_shared_heads(num_heads, num_key_value_heads)
        if rotary_max_wavelength is not None:
            check_rotary(rotary_max_wavelength, key_value_dim)
        self.num_heads = num_heads
        self.key_value_dim = key_value_dim
        self.dropout = dropout
        self.init_scale = init_scale
        self.num_key_value_heads = num_key_value_heads or num_heads
        self.use_bias = use_bias
        self.scaled = scaled
        self.rotary_max_wavelength = rotary_max_wavelength
        # The position bias must not be cast down: see MASKED.
        self.autocast = False
        self.dropout_layer = keras.layers.Dropout(
            dropout, name="dropout", dtype=self.dtype_policy
        )

    def build(self, input_shape):
        hidden_dim = input_shape[-1]
        inner_dim = self.num_heads * self.key_value_dim
        shared_dim = self.num_key_value_heads * self.key_value_dim
        # The query kernel carries T5's 1 / sqrt(key_value_dim).
        folded = 1 if self.scaled else self.key_value_dim
        self.query = self._dense("query", inner_dim, hidden_dim * folded)
        self.key = self._dense("key", shared_dim, fan_in=hidden_dim)
        self.value = self._dense("value", shared_dim, fan_in=hidden_dim)
        self.output_dense = self._dense("output", hidden_dim, inner_dim)
        for layer in (self.query, self.key, self.value):
            layer.build(input_shape)
        self.output_dense.build((*input_shape[:-1], inner_dim))

    def call(
        self,
        x,
        context=None,
        attention_mask=None,
        position_bias=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        first = 0 if cache_update_index is None else cache_update_index
        query = self._split_heads(self.query(x))  # [B, T, N, H]
        query = self._turned(query, first)
        keys_values = cache
        if cache is None or cache_update_index is not None:
            context = x if context is None else context
            keys_values = self.keys_values(context, first)
        if cache is not None and cache_update_index is not None:
            start = starts(0, 0, cache_update_index, 0)
            keys_values = tuple(
                ops.slice_update(old, start, new)
                for old, new in zip(cache, keys_values, strict=True)
            )
        key, value = keys_values  # [B, K, S, H]
        weights = self._weights(query, key, attention_mask, position_bias)
        if training:  # A call of a layer is dear in eager decoding.
            weights = self.dropout_layer(weights, training=training)
        y = self._weighted(weights, value)
        y = self.output_dense(self._merge_heads(y))  # [B, T, D]
        return y if cache is None else (y, keys_values)

    def keys_values(self, context: Any, first: Any = 0) -> tuple[Any, Any]:
        """`[B, S, D]` from position `first` on -> `[B, K, S, H]` each."""
        key, value = (
            self._split_heads(dense(context))
            for dense in (self.key, self.value)
        )
        both = (self._turned(key, first), value)
        return tuple(ops.transpose(x, (0, 2, 1, 3)) for x in both)

    def _turned(self, x, first):
        if self.rotary_max_wavelength is None:
            return x
        return rotate(x, first, self.rotary_max_wavelength)

    def _scores(self, query, key):
        heads, shared = self.num_heads, self.num_key_value_heads
        if heads == shared:
            return ops.einsum("btnh,bnsh->bnts", query, key)
        batch, length, _, width = ops.shape(query)
        query = ops.reshape(
            query, (batch, length, shared, heads // shared, width)
        )
        scores = ops.einsum("btkrh,bksh->bkrts", query, key)
        return ops.reshape(scores, (batch, heads, length, ops.shape(key)[2]))

    def _weighted(self, weights, value):
        heads, shared = self.num_heads, self.num_key_value_heads
        if heads == shared:
            return ops.einsum("bnts,bnsh->btnh", weights, value)
        batch, _, *lengths = ops.shape(weights)
        weights = ops.reshape(
            weights, (batch, shared, heads // shared, *lengths)
        )
        return ops.einsum("bkrts,bksh->btkrh", weights, value)

    def _weights(self, query, key, attention_mask, position_bias):
        scores = ops.cast(self._scores(query, key), "float32")
        if self.scaled:
            scores = scores * self.key_value_dim**-0.5
        if position_bias is not None:
            scores = shared_add(scores, ops.cast(position_bias, "float32"))
        if attention_mask is not None:
            seen = ops.cast(ops.expand_dims(attention_mask, 1), "bool")
            scores = ops.where(seen, scores, MASKED)
        weights = ops.softmax(scores, axis=-1)
        return ops.cast(weights, self.compute_dtype)  # [B, N, T, S]

    def _split_heads(self, x):
        heads = x.shape[-1] // self.key_value_dim
        return ops.reshape(x, (*ops.shape(x)[:2], heads, self.key_value_dim))

    def _merge_heads(self, x):
        inner_dim = self.num_heads * self.key_value_dim
        return ops.reshape(x, (*ops.shape(x)[:2], inner_dim))

    def _dense(self, name, units, fan_in):
        return keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=initializer(self.init_scale, fan_in),
            name=name,
            dtype=policy_of(self, name),
        )

    def compute_output_spec(
        self,
        x,
        context=None,
        attention_mask=None,
        position_bias=None,
        cache=None,
        cache_update_index=None,
        training=None,
    ):
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        return y if cache is None else (y, cache)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_value_dim": self.key_value_dim,
            "dropout": self.dropout,
            "init_scale": self.init_scale,
            "num_key_value_heads": self.num_key_value_heads,
            "use_bias": self.use_bias,
            "scaled": self.scaled,
            "rotary_max_wavelength": self.rotary_max_wavelength,
            **policy_config(self),
        }


def check_shared_heads(heads: int, shared: int | None) -> None:
    """Refuses heads of queries that heads of keys cannot share evenly.

    Raises:
        ValueError: naming the argument.
    """
    if shared is None:
        return
    check_number("num_key_value_heads", shared, whole=True, at_least=1)
    if heads % shared:
        raise ValueError(
            "num_heads must be a multiple of num_key_value_heads; received "
            f"num_heads={heads}, num_key_value_heads={shared}."
        )


@keras.saving.register_keras_serializable(package="keras_switch")
class RelativePositionBias(keras.layers.Layer):
    """A learned number per head for every distance between query and key.

    Distances fall into buckets: the first half of them hold one distance
    each, the rest grow in width up to `max_distance`, beyond which all share
    the last. In an encoder (`bidirectional=True`) half of the buckets serve
    keys to the right. In a decoder (`bidirectional=False`) keys to the right
    are later tokens: there the bias is `-1e9`, which makes it the causal mask
    as well. One table serves every layer of a stack.

    Args:
        num_heads: Number of heads, `N`.
        num_buckets: Number of buckets, even if `bidirectional`.
        max_distance: Distance from which on there is one bucket.
        bidirectional: Whether a query may see keys to its right.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        query: `[B, T, ...]`; only its length is read.
        key: optional `[B, S, ...]`; only its length is read. `query` if
            `None`.
        offset: int, position of the first query among the keys.

    Returns:
        float32 `[1, N, T, S]`.

    Example:

    ```python
    bias = keras_switch.layers.RelativePositionBias(4, bidirectional=False)
    bias(np.zeros((1, 5, 8)))  # [1, 4, 5, 5], -1e9 above the diagonal
    ```

    Reference:
        [T5 (Raffel et al., 2020)](https://arxiv.org/abs/1910.10683), 2.1
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_number("num_heads", num_heads, whole=True, at_least=1)
        check_number("num_buckets", num_buckets, whole=True, at_least=2)
        if num_buckets % (4 if bidirectional else 2):
            raise ValueError(
                "num_buckets must be a multiple of "
                f"{4 if bidirectional else 2} with bidirectional="
                f"{bidirectional}; received num_buckets={num_buckets}."
            )
        # Half of a direction's buckets hold one distance each.
        exact = num_buckets // (4 if bidirectional else 2)
        check_number("max_distance", max_distance, whole=True, above=exact)
        self.num_heads = num_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        # Lengths are read, values are not: integers must stay what they are.
        self.autocast = False

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, self.num_heads),
            initializer="glorot_uniform",
            autocast=False,
        )

    def call(self, query, key=None, offset=0):
        key = query if key is None else key
        queries = ops.arange(ops.shape(query)[1], dtype="int32") + offset
        keys = ops.arange(ops.shape(key)[1], dtype="int32")
        distance = keys[None, :] - queries[:, None]  # [T, S]
        table = ops.cast(self.embeddings, "float32")
        bias = ops.take(table, self._bucket(distance), axis=0)  # [T, S, N]
        if not self.bidirectional:
            bias = ops.where((distance > 0)[:, :, None], MASKED, bias)
        return ops.expand_dims(ops.transpose(bias, (2, 0, 1)), 0)

    def _bucket(self, distance):
        buckets, first, back = self.num_buckets, 0, -distance
        if self.bidirectional:
            buckets, back = buckets // 2, ops.abs(distance)
            first = ops.cast(distance > 0, "int32") * buckets
        table = _bucket_of_distance(buckets, self.max_distance)
        back = ops.clip(back, 0, self.max_distance)
        return first + ops.take(table, back, axis=0)  # [T, S]

    def compute_output_spec(self, query, key=None, offset=0):
        key = query if key is None else key
        shape = (1, self.num_heads, query.shape[1], key.shape[1])
        return keras.KerasTensor(shape, dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
        }


def _bucket_of_distance(num_buckets, max_distance):
    # A table made in numpy: a logarithm of a backend may round a distance on
    # the edge of a bucket into the one below.
    exact = num_buckets // 2
    distance = np.arange(max_distance + 1)
    ratio = np.log(np.maximum(distance, exact) / exact)
    far = ratio / math.log(max_distance / exact) * (num_buckets - exact)
    # 1e-6 absorbs the rounding where the quotient is a whole number.
    far = np.minimum(exact + (far + 1e-6).astype("int32"), num_buckets - 1)
    return np.where(distance < exact, distance, far).astype("int32")


def segment_mask(query_segments: Any, key_segments: Any) -> Any:
    """Which query may see which key, from padding masks or packed segments.

    A position sees another if both have the same segment id and it is not 0.
    A plain 0/1 padding mask is the case of one segment.

    Args:
        query_segments: int `[B, T]`.
        key_segments: int `[B, S]`.

    Returns:
        bool `[B, T, S]`.
    """
    query = ops.expand_dims(ops.cast(query_segments, "int32"), 2)
    key = ops.expand_dims(ops.cast(key_segments, "int32"), 1)
    return ops.logical_and(query == key, key != 0)
