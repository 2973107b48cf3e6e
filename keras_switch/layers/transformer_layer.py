"""The block of an encoder or decoder, around any feed-forward."""

import functools
import inspect
from typing import Any

import keras
from keras import ops

from keras_switch.layers.attention import Attention, segment_mask
from keras_switch.layers.normalization import make_norm
from keras_switch.layers.policies import policy_config
from keras_switch.layers.validation import check_causal
from keras_switch.ops import rematerialize as remat


@keras.saving.register_keras_serializable(package="keras_switch")
class TransformerLayer(keras.layers.Layer):
    """A pre-norm Transformer block whose feed-forward is handed in.

    `x += attention(norm(x))` for self-attention, then for cross-attention if
    there is one, then `x += feed_forward(norm(x))`, and once more with
    `extra_feed_forward` if that is given. Whether the block is
    sparse or dense is the business of `feed_forward` alone: a `SwitchLayer`, a
    `FeedForward` or any layer from `[B, T, D]` to `[B, T, D]`. It is given
    `padding_mask` and `token_ids` if its `call` takes them, and `record=False`
    with a cache if it takes that.

    The causal mask of a decoder is not made here: it comes with
    `position_bias`, from `RelativePositionBias(bidirectional=False)` or
    `CausalBias`. By default the block is T5's.

    Args:
        feed_forward: An unbuilt layer `[B, T, D] -> [B, T, D]`.
        num_heads: Number of attention heads, `N`.
        key_value_dim: Width of a head, `H`.
        cross_attention: Whether the block also attends to `encoder_output`.
            It is then a decoder's, and refuses a router that is not causal.
        dropout: Dropout rate of the attention weights and of every branch
            before it is added to the residual.
        layer_norm_epsilon: Epsilon of the norms.
        init_scale: Scale of the initial variance of the attention kernels.
        norm: `"rms"` or `"layer"`.
        num_key_value_heads, use_bias, scaled, rotary_max_wavelength: of
            self-attention, and but for the last of cross-attention too; see
            `Attention`.
        extra_feed_forward: An unbuilt dense layer `[B, T, D] -> [B, T, D]`, or
            `None`. It comes last, with a norm and a residual of its own, as in
            ST-MoE beside a sparse `feed_forward`.
        rematerialize: Whether in training the gradient computes the block a
            second time, of which else all activations are kept.
        **kwargs: `name`, `dtype` and the other arguments of `keras.Layer`.

    Call arguments:
        x: float `[B, T, D]`.
        padding_mask: optional int `[B, T]`: 0 for padding, 1 for a token, or
            packed segment ids from 1. Positions see only their own segment.
        position_bias: optional float `[1, N, T, S]`.
        encoder_output: float `[B, S, D]`, with `cross_attention` only. Leave
            it out to reuse the cross-attention keys and values of `cache`.
        encoder_padding_mask: optional int `[B, S]`.
        cache: optional pair of self- and cross-attention caches, each a
            pair `[B, K, S, H]`; `()` for the second without
            `cross_attention`. With it, pass `padding_mask` only if `x` fills
            the cache.
        cache_update_index: int, row of the self-attention cache to write at.
        training: Whether dropout, and the router's exploration, act.
        token_ids: optional int `[B, T]`, for a router that looks up tokens.

    Returns:
        `[B, T, D]`, or a pair of it and the caches if `cache` was given.

    Example:

    ```python
    block = keras_switch.layers.TransformerLayer(
        keras_switch.SwitchLayer(num_experts=4, intermediate_dim=128),
        num_heads=4,
        key_value_dim=16,
    )
    y = block(np.random.normal(size=(2, 5, 64)))  # [2, 5, 64]
    ```
    """

    def __init__(
        self,
        feed_forward: keras.layers.Layer,
        num_heads: int,
        key_value_dim: int,
        cross_attention: bool = False,
        dropout: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        init_scale: float = 0.1,
        norm: str = "rms",
        num_key_value_heads: int | None = None,
        use_bias: bool = False,
        scaled: bool = False,
        rotary_max_wavelength: float | None = None,
        extra_feed_forward: keras.layers.Layer | None = None,
        rematerialize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_layer("feed_forward", feed_forward)
        if extra_feed_forward is not None:
            _check_dense("extra_feed_forward", extra_feed_forward)
        if cross_attention:
            router = getattr(feed_forward, "router", None)
            check_causal("router", router)
        self.num_heads = num_heads
        self.key_value_dim = key_value_dim
        self.cross_attention = cross_attention
        self.dropout = dropout
        self.layer_norm_epsilon = layer_norm_epsilon
        self.init_scale = init_scale
        self.norm = norm
        self.num_key_value_heads = num_key_value_heads
        self.use_bias = use_bias
        self.scaled = scaled
        self.rotary_max_wavelength = rotary_max_wavelength
        self.rematerialize = rematerialize
        self.feed_forward = feed_forward
        self.extra_feed_forward = extra_feed_forward
        taken = inspect.signature(feed_forward.call).parameters
        self._feed_forward_takes = frozenset(taken)
        # The position bias stays float32; `call` casts what is to be cast.
        self.autocast = False
        self._make_layers()

    def _make_layers(self):
        self.self_attention_norm = self._norm("self_attention_norm")
        self.self_attention = self._attention(
            "self_attention", self.rotary_max_wavelength
        )
        if self.cross_attention:
            self.cross_attention_norm = self._norm("cross_attention_norm")
            self.cross_attention_layer = self._attention("cross_attention")
        self.feed_forward_norm = self._norm("feed_forward_norm")
        if self.extra_feed_forward is not None:
            self.extra_feed_forward_norm = self._norm("extra_feed_forward_norm")
        self.dropout_layer = keras.layers.Dropout(
            self.dropout, name="dropout", dtype=self.dtype_policy
        )

    def _norm(self, name):
        return make_norm(
            self.norm,
            self.layer_norm_epsilon,
            name=name,
            dtype=self.dtype_policy,
        )

    def _attention(self, name, rotary_max_wavelength=None):
        return Attention(
            self.num_heads,
            self.key_value_dim,
            dropout=self.dropout,
            init_scale=self.init_scale,
            num_key_value_heads=self.num_key_value_heads,
            use_bias=self.use_bias,
            scaled=self.scaled,
            rotary_max_wavelength=rotary_max_wavelength,
            name=name,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape):
        layers = [self.self_attention_norm, self.self_attention]
        if self.cross_attention:
            layers += [self.cross_attention_norm, self.cross_attention_layer]
        layers += [self.feed_forward_norm, self.feed_forward]
        if self.extra_feed_forward is not None:
            layers += [self.extra_feed_forward_norm, self.extra_feed_forward]
        for layer in layers:
            # One that was given may be built, as those of a file are.
            if not layer.built:
                layer.build(input_shape)

    def call(
        self,
        x,
        padding_mask=None,
        position_bias=None,
        encoder_output=None,
        encoder_padding_mask=None,
        cache=None,
        cache_update_index=None,
        training=None,
        token_ids=None,
    ):
        self._check_encoder_output(encoder_output, cache)
        inputs = {
            "x": x,
            "padding_mask": padding_mask,
            "position_bias": position_bias,
            "encoder_output": encoder_output,
            "encoder_padding_mask": encoder_padding_mask,
            "token_ids": token_ids,
        }
        if self.rematerialize and training and cache is None:
            block = functools.partial(self._block, training=training)
            return remat.rematerialize(self, block, inputs)
        return self._block(
            **inputs,
            cache=cache,
            cache_update_index=cache_update_index,
            training=training,
        )

    def _block(
        self,
        x,
        padding_mask,
        position_bias,
        encoder_output,
        encoder_padding_mask,
        token_ids,
        training,
        cache=None,
        cache_update_index=None,
    ):
        x = ops.cast(x, self.compute_dtype)
        self_cache, cross_cache = (None, None) if cache is None else cache
        y = self.self_attention(
            self.self_attention_norm(x),
            attention_mask=_mask(padding_mask, padding_mask),
            position_bias=position_bias,
            cache=self_cache,
            cache_update_index=cache_update_index,
            training=training,
        )
        y, self_cache = y if cache is not None else (y, None)
        x = self._add(x, y, training)
        if self.cross_attention:
            y = self.cross_attention_layer(
                self.cross_attention_norm(x),
                context=encoder_output,
                attention_mask=_mask(padding_mask, encoder_padding_mask),
                cache=cross_cache,
                cache_update_index=None if encoder_output is None else 0,
                training=training,
            )
            y, cross_cache = y if cache is not None else (y, None)
            x = self._add(x, y, training)
        offered = {
            "padding_mask": padding_mask,
            # Statistics are those of training and evaluation, not of decoding.
            "record": cache is None,
            "token_ids": token_ids,
        }
        x = self._feed_forward(x, offered, training)
        return x if cache is None else (x, (self_cache, cross_cache))

    def _check_encoder_output(self, encoder_output, cache):
        if encoder_output is not None and not self.cross_attention:
            raise ValueError(
                "encoder_output needs a TransformerLayer(cross_attention=True)"
                "; received encoder_output with cross_attention=False."
            )
        if self.cross_attention and encoder_output is None and cache is None:
            raise ValueError(
                "encoder_output must be given with cross_attention=True, "
                "unless a cache holds its keys and values; received "
                "encoder_output=None, cache=None."
            )

    def _feed_forward(self, x, offered, training):
        arguments = {
            name: value
            for name, value in offered.items()
            if name in self._feed_forward_takes
        }
        y = self.feed_forward_norm(x)
        y = self.feed_forward(y, training=training, **arguments)
        x = self._add(x, y, training)
        if self.extra_feed_forward is None:
            return x
        y = self.extra_feed_forward_norm(x)
        y = self.extra_feed_forward(y, training=training)
        return self._add(x, y, training)

    def _add(self, x, y, training):
        if training:  # A call of a layer is dear in eager decoding.
            y = self.dropout_layer(y, training=training)
        x = x + y
        if self.compute_dtype != "float16":
            return x
        # The residual of a trained T5 outgrows float16, and the next norm
        # would turn the infinity into NaN.
        return ops.clip(x, -65504.0, 65504.0)

    def compute_output_spec(
        self,
        x,
        padding_mask=None,
        position_bias=None,
        encoder_output=None,
        encoder_padding_mask=None,
        cache=None,
        cache_update_index=None,
        training=None,
        token_ids=None,
    ):
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        return y if cache is None else (y, cache)

    def get_config(self):
        return {
            **super().get_config(),
            **policy_config(self),
            **{
                name: _unbuilt(getattr(self, name))
                for name in ("feed_forward", "extra_feed_forward")
            },
            "num_heads": self.num_heads,
            "key_value_dim": self.key_value_dim,
            "cross_attention": self.cross_attention,
            "dropout": self.dropout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "init_scale": self.init_scale,
            "norm": self.norm,
            "num_key_value_heads": self.num_key_value_heads,
            "use_bias": self.use_bias,
            "scaled": self.scaled,
            "rotary_max_wavelength": self.rotary_max_wavelength,
            "rematerialize": self.rematerialize,
        }

    @classmethod
    def from_config(cls, config):
        layers = {
            name: keras.saving.deserialize_keras_object(config.get(name))
            for name in ("feed_forward", "extra_feed_forward")
        }
        return cls(**{**config, **layers})


def _unbuilt(layer):
    """The config of a layer whose copy is to be built in ours, for its path."""
    config = keras.saving.serialize_keras_object(layer)
    if layer is not None:
        config.pop("build_config", None)
    return config


def _check_layer(name, layer):
    if not isinstance(layer, keras.layers.Layer):
        raise ValueError(
            f"{name} must be a keras.layers.Layer; received {name}={layer!r}."
        )


def _check_dense(name, layer):
    _check_layer(name, layer)
    if hasattr(layer, "router"):
        raise ValueError(
            f"{name} must be dense, such as a FeedForward: no padding mask is "
            f"handed to it; received a {type(layer).__name__}. Pass that as "
            "feed_forward."
        )


def _mask(query_segments, key_segments):
    """Attention mask `[B, T or 1, S]`, or `None` where all is seen."""
    if key_segments is None:
        return None
    if query_segments is None:
        return ops.cast(ops.expand_dims(key_segments, 1), "bool")
    return segment_mask(query_segments, key_segments)
