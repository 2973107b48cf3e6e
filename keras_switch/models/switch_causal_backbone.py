"""A sparse decoder alone: GLaM, fairseq-MoE, Mixtral and their like."""

import inspect
from typing import Any

import keras
import keras_hub

from keras_switch.layers.attention import RelativePositionBias
from keras_switch.layers.normalization import make_norm
from keras_switch.layers.positions import CausalBias, PositionEmbedding
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
class SwitchCausalBackbone(
    PresetModel, SparseBackbone, keras_hub.models.Backbone
):
    """A decoder without an encoder, without its logits.

    Pre-norm blocks of causal self-attention, whose scores are divided by the
    root of a head's width, and of feed-forwards, some of them mixtures of
    experts: layer `i` is sparse if `i % sparse_step == sparse_step - 1`. The
    arguments make of it GLaM (relative biases of each layer's own, dense
    layers gated), fairseq-MoE (LayerNorm, biases, sinusoids) or Mixtral
    (rotary positions, grouped queries, every layer sparse and gated).

    Padding masks are 0 for padding and 1 for tokens, on either side of a row.
    They may also hold the ids of packed segments, from 1: a position then
    attends to its own segment only, and counts from its beginning.

    Args:
        vocabulary_size: Rows of the embedding.
        num_layers: Layers.
        num_heads: Attention heads of queries, `N`.
        hidden_dim: Width of the residual, `D`.
        intermediate_dim: Width of the dense feed-forwards, `F`.
        key_value_dim: Width of a head, `H`. `None`: `hidden_dim / num_heads`.
        num_key_value_heads: Heads of keys and values, each shared by equally
            many of queries; `None`: `num_heads`.
        num_experts: Experts of a sparse layer, `E`. May be `None` if no layer
            is sparse.
        sparse_step: Every how many layers one is sparse: 1 is all, 0 is none.
            Or a list of the indices of the sparse layers.
        expert_intermediate_dim: Width of an expert; `None`: as the dense.
        router: Router of the sparse layers; see `SwitchLayer`. It must be
            causal, so `"expert_choice"` is refused.
        dispatch: `"gather"`, `"einsum"` or `"dropless"`; see `SwitchLayer`.
        capacity_factor: See `SwitchLayer`.
        eval_capacity_factor: See `SwitchLayer`. `None` evaluates and generates
            dropless: cached decoding then equals a full pass, and a row does
            not depend on the rest of its batch.
        min_capacity: See `SwitchLayer`.
        capacity: See `SwitchLayer`.
        group_size: Tokens that compete for capacity; `None`: one sequence.
        activation: `"gelu"` and so on, or `"gated-silu"` and so on.
        expert_activation: That of the experts; `None`: as the dense.
        use_bias: Whether attention, feed-forwards and experts have biases.
            Routers and logits have none.
        norm: `"rms"` or `"layer"`.
        position: `"relative"`, T5's biases, for each layer its own;
            `"rotary"`; `"learned"` or `"sinusoidal"`, added to the embedding.
        max_sequence_length: Rows of the learned positions, which no sequence
            may exceed.
        rotary_max_wavelength: Base of the rotary positions.
        relative_attention_num_buckets: Buckets of relative positions.
        relative_attention_max_distance: Distance from which on there is one.
        dropout: Dropout rate, also of the experts unless `expert_dropout`.
        expert_dropout: Dropout rate inside the experts.
        layer_norm_epsilon: Epsilon of the norms.
        tie_embedding_weights: Whether the logits share the embedding; they
            are then scaled by `D ** -0.5`, as in T5.
        init_scale: Scale of the initial variance `init_scale / fan_in` of all
            kernels but the logits'.
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
        inputs: A dict of int tensors `[B, T]`: `token_ids` and `padding_mask`.

    Returns:
        `[B, T, D]`.

    Raises:
        ValueError: if an argument is unknown or out of its range.

    Example:

    ```python
    backbone = keras_switch.SwitchCausalBackbone(
        vocabulary_size=1000,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        num_experts=4,
    )
    ids = np.ones((1, 5), dtype="int32")
    outputs = backbone({"token_ids": ids, "padding_mask": ids})
    ```

    Reference:
        [GLaM (Du et al., 2022)](https://arxiv.org/abs/2112.06905);
        [fairseq-MoE (Artetxe et al., 2022)](https://arxiv.org/abs/2112.10684);
        [Mixtral (Jiang et al., 2024)](https://arxiv.org/abs/2401.04088)
    """

    preset_name = "SwitchCausalBackbone"

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        key_value_dim: int | None = None,
        num_key_value_heads: int | None = None,
        num_experts: int | None = 8,
        sparse_step: int | list[int] = 2,
        expert_intermediate_dim: int | None = None,
        router: Any = "switch",
        dispatch: str = "gather",
        capacity_factor: float = 1.25,
        eval_capacity_factor: float | None = None,
        min_capacity: int = 4,
        capacity: int | None = None,
        group_size: int | None = None,
        activation: str = "gelu",
        expert_activation: str | None = None,
        use_bias: bool = False,
        norm: str = "rms",
        position: str = "rotary",
        max_sequence_length: int | None = None,
        rotary_max_wavelength: float = 10000.0,
        relative_attention_num_buckets: int = 32,
        relative_attention_max_distance: int = 128,
        dropout: float = 0.0,
        expert_dropout: float | None = None,
        layer_norm_epsilon: float = 1e-6,
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
        check_known("SwitchCausalBackbone", kwargs, ("name", "trainable"))
        check_arguments(arguments)
        # === Config ===
        self._keep(arguments)
        # === Layers ===
        check_shapes(arguments)
        self._make_embedding(dtype)
        self._make_positions(dtype)
        (sparse,) = sparse_stacks(arguments)
        self.transformer_layers = [
            self._transformer_layer(i, i in sparse, router, dtype)
            for i in range(num_layers)
        ]
        self.layer_norm = make_norm(
            norm, layer_norm_epsilon, name="layer_norm", dtype=dtype
        )
        # === Functional model ===
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("token_ids", "padding_mask")
        }
        outputs = self.call_decoder(**inputs)
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        spread(self)

    @property
    def stacks(self) -> dict[str, list]:
        """The transformer layers, of one stack: `"decoder"`."""
        return {"decoder": self.transformer_layers}

    def call_decoder(
        self,
        token_ids: Any,
        padding_mask: Any = None,
        caches: Any = None,
        cache_update_index: Any = None,
    ) -> Any:
        """Runs the decoder; the functional model and generation share it.

        Args:
            token_ids: int `[B, T]`.
            padding_mask: optional int `[B, T]`, 0 for padding. With `caches`,
                pass it only if `token_ids` fills them.
            caches: optional list, for each layer, of the pair of caches that
                `TransformerLayer` takes; the second is `()`.
            cache_update_index: int, position of the first token of
                `token_ids`.

        Returns:
            `[B, T, D]`, or a pair of it and the caches if they were given.
        """
        x = self.token_embedding(token_ids)  # [B, T, D]
        first, keys = 0, None
        if caches is not None:
            first = cache_update_index
            keys = caches[0][0][0][:, 0]  # [B, S, H], for its length
        if self.position_embedding is not None:
            x = self.position_embedding(x, padding_mask, offset=first)
        x = self.embedding_dropout(x)
        biases = [
            layer(x, keys, offset=first) for layer in self.position_biases
        ]
        biases = biases * (self.num_layers // len(biases))
        next_caches = []
        for i, layer in enumerate(self.transformer_layers):
            x = layer(
                x,
                padding_mask=padding_mask,
                position_bias=biases[i],
                cache=None if caches is None else caches[i],
                cache_update_index=cache_update_index,
                token_ids=token_ids,
            )
            if caches is not None:
                x, cache = x
                next_caches.append(cache)
        x = self.layer_norm(x)
        return (x, next_caches) if next_caches else x

    def _make_positions(self, dtype):
        """What is added to the embedding, and to the scores of attention."""
        self.position_embedding = None
        if self.position in ("learned", "sinusoidal"):
            self.position_embedding = PositionEmbedding(
                self.position,
                self.max_sequence_length,
                name="position_embedding",
                dtype=dtype,
            )
        self.embedding_dropout = keras.layers.Dropout(
            self.dropout, name="embedding_dropout", dtype=dtype
        )
        if self.position != "relative":
            # One for all layers: the causal mask.
            self.position_biases = [CausalBias(name="causal_bias", dtype=dtype)]
            return
        self.position_biases = [
            RelativePositionBias(
                self.num_heads,
                self.relative_attention_num_buckets,
                self.relative_attention_max_distance,
                bidirectional=False,
                name=f"relative_attention_bias_{i}",
                dtype=dtype,
            )
            for i in range(self.num_layers)
        ]

    def _transformer_layer(self, index, is_sparse, router, dtype):
        rotary = self.position == "rotary"
        return TransformerLayer(
            self._make_feed_forward(
                is_sparse, router, dtype, use_bias=self.use_bias
            ),
            self.num_heads,
            self.key_value_dim,
            dropout=self.dropout,
            layer_norm_epsilon=self.layer_norm_epsilon,
            init_scale=self.init_scale,
            norm=self.norm,
            num_key_value_heads=self.num_key_value_heads,
            use_bias=self.use_bias,
            scaled=True,
            rotary_max_wavelength=self.rotary_max_wavelength
            if rotary
            else None,
            extra_feed_forward=self._make_extra_feed_forward(
                is_sparse, dtype, use_bias=self.use_bias
            ),
            rematerialize=self.rematerialize,
            name=f"transformer_layer_{index}",
            dtype=dtype,
        )


# Names of the arguments that make up a config.
_ARGUMENTS = tuple(
    name
    for name in inspect.signature(SwitchCausalBackbone.__init__).parameters
    if name not in ("self", "dtype", "kwargs")
)
SwitchCausalBackbone.argument_names = _ARGUMENTS
