"""The encoder-decoder of Switch Transformers and of T5."""

import inspect
from typing import Any

import keras
import keras_hub

from keras_switch.layers.attention import RelativePositionBias
from keras_switch.layers.normalization import RMSNorm
from keras_switch.layers.transformer_layer import TransformerLayer
from keras_switch.models.backbone_arguments import (
    check_arguments,
    check_known,
    sparse_stacks,
)
from keras_switch.models.preset_model import PresetModel
from keras_switch.models.sparse_backbone import SparseBackbone
from keras_switch.models.spread import check_shapes, spread


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchBackbone(PresetModel, SparseBackbone, keras_hub.models.Backbone):
    """The encoder-decoder of Switch Transformers, without its logits.

    T5 1.1 with some feed-forwards replaced by mixtures of experts: RMS
    pre-norms, relative position biases shared by the layers of a stack,
    unscaled attention, no biases. Layer `i` of a stack is sparse if
    `i % sparse_step == sparse_step - 1`. With no sparse layer at all it is T5.

    Padding masks are 0 for padding and 1 for tokens. They may also hold the
    ids of packed segments, from 1: a position then attends to its own segment
    only, in the decoder to the encoder's segment of the same id.

    Args:
        vocabulary_size: Rows of the embedding. It may exceed the tokenizer's
            vocabulary: T5 pads 32,100 to 32,128.
        num_encoder_layers: Layers of the encoder.
        num_decoder_layers: Layers of the decoder.
        num_heads: Attention heads, `N`.
        hidden_dim: Width of the residual, `D`.
        intermediate_dim: Width of the feed-forwards and of each expert, `F`.
        key_value_dim: Width of a head, `H`. `None`: `hidden_dim / num_heads`.
        num_experts: Experts of a sparse layer, `E`. May be `None` if no layer
            is sparse.
        encoder_sparse_step: Every how many encoder layers one is sparse: 1 is
            all, 0 is none. Or a list of the indices of the sparse layers.
        decoder_sparse_step: The same for the decoder.
        router: Router of the sparse layers; see `SwitchLayer`.
        decoder_router: Router of the decoder; `None`: `router`. It must be
            causal, so `"expert_choice"` is refused.
        dispatch: `"gather"`, `"einsum"` or `"dropless"`; see `SwitchLayer`.
        capacity_factor: See `SwitchLayer`.
        eval_capacity_factor: See `SwitchLayer`. `None` evaluates and generates
            dropless: cached decoding then equals a full pass, and a row does
            not depend on the rest of its batch.
        min_capacity: See `SwitchLayer`.
        capacity: See `SwitchLayer`.
        group_size: Tokens that compete for capacity; `None`: one sequence.
        activation: `"relu"` and so on, or `"gated-gelu"` and so on.
        dropout: Dropout rate, also of the experts unless `expert_dropout`.
        expert_dropout: Dropout rate inside the experts. The paper fine-tunes
            with 0.1 and 0.4.
        layer_norm_epsilon: Epsilon of the norms.
        relative_attention_num_buckets: Buckets of relative positions.
        relative_attention_max_distance: Distance from which on there is one.
        tie_embedding_weights: Whether the logits share the embedding.
        init_scale: Scale of the initial variance `init_scale / fan_in` of all
            kernels but the logits'. 0.1 as the paper, 1.0 as T5.
        extra_feed_forward: Whether each sparse layer is followed by a dense
            feed-forward with a norm and a residual of its own, as in ST-MoE
            (arXiv 2202.08906).
        num_shared_experts: Experts of a sparse layer that every token goes to
            besides those of its routes; see `SwitchLayer`.
        expert_blocks: Feed-forwards of an expert; see `SwitchLayer`.
        rematerialize: Whether in training the gradient computes each layer a
            second time: of a layer only its input is kept, and a step takes
            less memory and more time. Results are the same.
        dtype: Dtype or dtype policy of all layers.
        **kwargs: `name` and `trainable`.

    Call arguments:
        inputs: A dict of int tensors: `encoder_token_ids` and
            `encoder_padding_mask`, `[B, S]`; `decoder_token_ids` and
            `decoder_padding_mask`, `[B, T]`.

    Returns:
        A dict: `encoder_sequence_output`, `[B, S, D]`, and
        `decoder_sequence_output`, `[B, T, D]`.

    Raises:
        ValueError: if an argument is unknown or out of its range.

    Example:

    ```python
    backbone = keras_switch.SwitchBackbone(
        vocabulary_size=1000,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        num_experts=4,
    )
    ids = np.ones((1, 5), dtype="int32")
    outputs = backbone(
        {
            "encoder_token_ids": ids,
            "encoder_padding_mask": ids,
            "decoder_token_ids": ids,
            "decoder_padding_mask": ids,
        }
    )
    ```

    Reference:
        [Switch Transformers (Fedus et al., 2022)](https://arxiv.org/abs/2101.03961)
    """

    preset_name = "SwitchBackbone"

    def __init__(
        self,
        vocabulary_size: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        key_value_dim: int | None = None,
        num_experts: int | None = 8,
        encoder_sparse_step: int | list[int] = 2,
        decoder_sparse_step: int | list[int] = 2,
        router: Any = "switch",
        decoder_router: Any = None,
        dispatch: str = "gather",
        capacity_factor: float = 1.25,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 4,
        capacity: int | None = None,
        group_size: int | None = None,
        activation: str = "relu",
        dropout: float = 0.1,
        expert_dropout: float | None = None,
        layer_norm_epsilon: float = 1e-6,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        tie_embedding_weights: bool = True,
        init_scale: float = 0.1,
        extra_feed_forward: bool = False,
        num_shared_experts: int = 0,
        expert_blocks: int = 1,
        rematerialize: bool = False,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k in _ARGUMENTS}
        check_known("SwitchBackbone", kwargs, ("name", "trainable"))
        check_arguments(arguments)
        # === Config ===
        self._keep(arguments)
        # === Layers ===
        check_shapes(arguments)
        encoder_sparse, decoder_sparse = sparse_stacks(arguments)
        self._make_embedding(dtype)
        self._make_stack("encoder", encoder_sparse, router, dtype)
        self._make_stack("decoder", decoder_sparse, decoder_router, dtype)
        # === Functional model ===
        inputs = _inputs()
        encoder_output = self.call_encoder(
            inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
        )
        decoder_output = self.call_decoder(
            inputs["decoder_token_ids"],
            padding_mask=inputs["decoder_padding_mask"],
            encoder_output=encoder_output,
            encoder_padding_mask=inputs["encoder_padding_mask"],
        )
        super().__init__(
            inputs=inputs,
            outputs={
                "encoder_sequence_output": encoder_output,
                "decoder_sequence_output": decoder_output,
            },
            dtype=dtype,
            **kwargs,
        )
        spread(self)

    @property
    def stacks(self) -> dict[str, list]:
        """The transformer layers of `"encoder"` and `"decoder"`."""
        return {
            "encoder": self.encoder_transformer_layers,
            "decoder": self.decoder_transformer_layers,
        }

    def call_encoder(self, token_ids: Any, padding_mask: Any) -> Any:
        """Runs the encoder; the functional model and generation share it.

        Args:
            token_ids: int `[B, S]`.
            padding_mask: int `[B, S]`, 0 for padding.

        Returns:
            `[B, S, D]`.
        """
        x = self.token_embedding(token_ids)  # [B, S, D]
        x = self.encoder_embedding_dropout(x)
        position_bias = self.encoder_relative_attention_bias(x)
        for layer in self.encoder_transformer_layers:
            x = layer(x, padding_mask, position_bias, token_ids=token_ids)
        return self.encoder_dropout(self.encoder_layer_norm(x))

    def call_decoder(
        self,
        token_ids: Any,
        padding_mask: Any = None,
        encoder_output: Any = None,
        encoder_padding_mask: Any = None,
        caches: Any = None,
        cache_update_index: Any = None,
    ) -> Any:
        """Runs the decoder; the functional model and generation share it.

        Args:
            token_ids: int `[B, T]`.
            padding_mask: optional int `[B, T]`, 0 for padding. With `caches`,
                pass it only if `token_ids` fills them.
            encoder_output: `[B, S, D]`. Leave it out to reuse the
                cross-attention keys and values in `caches`.
            encoder_padding_mask: optional int `[B, S]`.
            caches: optional list, for each layer, of the pair of caches that
                `TransformerLayer` takes.
            cache_update_index: int, position of the first token of
                `token_ids`.

        Returns:
            `[B, T, D]`, or a pair of it and the caches if they were given.
        """
        x = self.token_embedding(token_ids)  # [B, T, D]
        x = self.decoder_embedding_dropout(x)
        if caches is None:
            caches = [None] * self.num_decoder_layers
            position_bias = self.decoder_relative_attention_bias(x)
        else:
            keys = caches[0][0][0][:, 0]  # [B, T, H], for its length
            position_bias = self.decoder_relative_attention_bias(
                x, keys, offset=cache_update_index
            )
        next_caches = []
        for layer, cache in zip(
            self.decoder_transformer_layers, caches, strict=True
        ):
            x = layer(
                x,
                padding_mask=padding_mask,
                position_bias=position_bias,
                encoder_output=encoder_output,
                encoder_padding_mask=encoder_padding_mask,
                cache=cache,
                cache_update_index=cache_update_index,
                token_ids=token_ids,
            )
            if cache is not None:
                x, cache = x
                next_caches.append(cache)
        x = self.decoder_dropout(self.decoder_layer_norm(x))
        return (x, next_caches) if next_caches else x

    def _make_stack(self, stack, sparse, router, dtype):
        """Makes the layers of the encoder or the decoder, and names them."""
        attributes = {
            "embedding_dropout": keras.layers.Dropout(
                self.dropout, name=f"{stack}_embedding_dropout", dtype=dtype
            ),
            "relative_attention_bias": RelativePositionBias(
                self.num_heads,
                self.relative_attention_num_buckets,
                self.relative_attention_max_distance,
                bidirectional=stack == "encoder",
                name=f"{stack}_relative_attention_bias",
                dtype=dtype,
            ),
            "transformer_layers": [
                self._transformer_layer(stack, i, i in sparse, router, dtype)
                for i in range(getattr(self, f"num_{stack}_layers"))
            ],
            "layer_norm": RMSNorm(
                self.layer_norm_epsilon,
                name=f"{stack}_layer_norm",
                dtype=dtype,
            ),
            "dropout": keras.layers.Dropout(
                self.dropout, name=f"{stack}_dropout", dtype=dtype
            ),
        }
        for name, value in attributes.items():
            setattr(self, f"{stack}_{name}", value)

    def _transformer_layer(self, stack, index, sparse, router, dtype):
        router = router or self.router
        return TransformerLayer(
            self._make_feed_forward(sparse, router, dtype),
            self.num_heads,
            self.key_value_dim,
            cross_attention=stack == "decoder",
            dropout=self.dropout,
            layer_norm_epsilon=self.layer_norm_epsilon,
            init_scale=self.init_scale,
            extra_feed_forward=self._make_extra_feed_forward(sparse, dtype),
            rematerialize=self.rematerialize,
            name=f"{stack}_layer_{index}",
            dtype=dtype,
        )


# Names of the arguments that make up a config.
_ARGUMENTS = tuple(
    name
    for name in inspect.signature(SwitchBackbone.__init__).parameters
    if name not in ("self", "dtype", "kwargs")
)
SwitchBackbone.argument_names = _ARGUMENTS


def _inputs():
    return {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in (
            "encoder_token_ids",
            "encoder_padding_mask",
            "decoder_token_ids",
            "decoder_padding_mask",
        )
    }
