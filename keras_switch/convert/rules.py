"""Where each weight of a backbone lies in other layouts: tables.

A row is `(our path, their name, transposed)`. `{stack}` is `encoder` or
`decoder`, `{i}` a layer, `{kernel}` one of `wi`, `wi_0`, `wi_1` and `wo`. A
name with `{e}` stands for one tensor of each expert, which are stacked; then
`transposed` is said of each of them.
"""

import re
from typing import Any, NamedTuple

import keras

Table = tuple[tuple[str, str, bool], ...]


class Entry(NamedTuple):
    """One of our weights, and where it lies in another layout."""

    path: str  # of our variable
    shape: tuple[int, ...]  # of our variable
    sources: tuple[str, ...]  # several are stacked along a new first axis
    transposed: bool  # each source, of our variable or of its slice
    source_shape: tuple[int, ...]  # of each source


_HF_ATTENTION: Table = tuple(
    (f"{layer}/{name}/kernel", f"{block}.{letter}.weight", True)
    for layer, block in (
        (
            "{stack}_layer_{i}/self_attention",
            "{stack}.block.{i}.layer.0.SelfAttention",
        ),
        (
            "decoder_layer_{i}/cross_attention",
            "decoder.block.{i}.layer.1.EncDecAttention",
        ),
    )
    for name, letter in zip(
        ("query", "key", "value", "output"), "qkvo", strict=True
    )
)
_HF_COMMON: Table = (
    ("token_embedding/embeddings", "shared.weight", False),
    ("token_embedding/reverse_embeddings", "lm_head.weight", True),
    (
        "{stack}_relative_attention_bias/embeddings",
        "{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        False,
    ),
    ("{stack}_layer_norm/scale", "{stack}.final_layer_norm.weight", False),
    (
        "{stack}_layer_{i}/self_attention_norm/scale",
        "{stack}.block.{i}.layer.0.layer_norm.weight",
        False,
    ),
    (
        "decoder_layer_{i}/cross_attention_norm/scale",
        "decoder.block.{i}.layer.1.layer_norm.weight",
        False,
    ),
    (
        "encoder_layer_{i}/feed_forward_norm/scale",
        "encoder.block.{i}.layer.1.layer_norm.weight",
        False,
    ),
    (
        "decoder_layer_{i}/feed_forward_norm/scale",
        "decoder.block.{i}.layer.2.layer_norm.weight",
        False,
    ),
    *_HF_ATTENTION,
)


def _hf_feed_forward(ours: str, theirs: str) -> Table:
    """A row for each stack; in a decoder the feed-forward is sublayer 2."""
    return tuple(
        (
            f"{stack}_layer_{{i}}/feed_forward/{ours}/kernel",
            f"{stack}.block.{{i}}.layer.{sublayer}.{theirs}.weight",
            True,
        )
        for stack, sublayer in (("encoder", 1), ("decoder", 2))
    )


# `transformers`, model_type "switch_transformers".
HUGGINGFACE: Table = (
    *_HF_COMMON,
    *_hf_feed_forward("{kernel}", "mlp.{kernel}"),
    *_hf_feed_forward("router", "mlp.router.classifier"),
    *_hf_feed_forward("experts/{kernel}", "mlp.experts.expert_{e}.{kernel}"),
)
# `transformers`, model_type "t5".
HUGGINGFACE_T5: Table = (
    *_HF_COMMON,
    *_hf_feed_forward("{kernel}", "DenseReluDense.{kernel}"),
)
_MIXTRAL_LAYER: Table = tuple(
    (f"transformer_layer_{{i}}/{ours}", f"model.layers.{{i}}.{theirs}", turned)
    for ours, theirs, turned in (
        ("self_attention_norm/scale", "input_layernorm.weight", False),
        ("self_attention/query/kernel", "self_attn.q_proj.weight", True),
        ("self_attention/key/kernel", "self_attn.k_proj.weight", True),
        ("self_attention/value/kernel", "self_attn.v_proj.weight", True),
        ("self_attention/output/kernel", "self_attn.o_proj.weight", True),
        ("feed_forward_norm/scale", "post_attention_layernorm.weight", False),
        ("feed_forward/router/kernel", "block_sparse_moe.gate.weight", True),
        *(
            (
                f"feed_forward/experts/{ours}/kernel",
                f"block_sparse_moe.experts.{{e}}.{theirs}.weight",
                True,
            )
            for ours, theirs in (("wi_0", "w1"), ("wi_1", "w3"), ("wo", "w2"))
        ),
    )
)
# `transformers`, model_type "mixtral". Files hold a tensor for each expert;
# the model of `transformers` 5 stacks them when it loads.
MIXTRAL: Table = (
    ("token_embedding/embeddings", "model.embed_tokens.weight", False),
    ("token_embedding/reverse_embeddings", "lm_head.weight", True),
    ("layer_norm/scale", "model.norm.weight", False),
    *_MIXTRAL_LAYER,
)
# T5X and Flaxformer, without the leading "target/".
T5X: Table = (
    ("token_embedding/embeddings", "token_embedder/embedding", False),
    (
        "token_embedding/reverse_embeddings",
        "decoder/logits_dense/kernel",
        False,
    ),
    (
        "{stack}_relative_attention_bias/embeddings",
        "{stack}/relpos_bias/rel_embedding",
        True,
    ),
    ("{stack}_layer_norm/scale", "{stack}/{stack}_norm/scale", False),
    (
        "encoder_layer_{i}/self_attention_norm/scale",
        "encoder/layers_{i}/pre_attention_layer_norm/scale",
        False,
    ),
    (
        "decoder_layer_{i}/self_attention_norm/scale",
        "decoder/layers_{i}/pre_self_attention_layer_norm/scale",
        False,
    ),
    (
        "decoder_layer_{i}/cross_attention_norm/scale",
        "decoder/layers_{i}/pre_cross_attention_layer_norm/scale",
        False,
    ),
    (
        "{stack}_layer_{i}/feed_forward_norm/scale",
        "{stack}/layers_{i}/pre_mlp_layer_norm/scale",
        False,
    ),
    *(
        (f"{layer}/{ours}/kernel", f"{block}/{theirs}/kernel", False)
        for layer, block in (
            (
                "encoder_layer_{i}/self_attention",
                "encoder/layers_{i}/attention",
            ),
            (
                "decoder_layer_{i}/self_attention",
                "decoder/layers_{i}/self_attention",
            ),
            (
                "decoder_layer_{i}/cross_attention",
                "decoder/layers_{i}/encoder_decoder_attention",
            ),
        )
        for ours, theirs in (
            ("query", "query"),
            ("key", "key"),
            ("value", "value"),
            ("output", "out"),
        )
    ),
    (
        "{stack}_layer_{i}/extra_feed_forward_norm/scale",
        "{stack}/layers_{i}/pre_extra_mlp_layer_norm/scale",
        False,
    ),
    (
        "{stack}_layer_{i}/extra_feed_forward/{kernel}/kernel",
        "{stack}/layers_{i}/extra_mlp/{kernel}/kernel",
        False,
    ),
    (
        "{stack}_layer_{i}/feed_forward/{kernel}/kernel",
        "{stack}/layers_{i}/mlp/{kernel}/kernel",
        False,
    ),
    (
        "{stack}_layer_{i}/feed_forward/router/kernel",
        "{stack}/layers_{i}/mlp/router/router_weights/w/kernel",
        False,
    ),
    (
        "{stack}_layer_{i}/feed_forward/experts/{kernel}/kernel",
        "{stack}/layers_{i}/mlp/expert/{kernel}/kernel",
        False,
    ),
)

EMBEDDING = "token_embedding/embeddings"
_PLACES = {
    "stack": "encoder|decoder",
    "i": "[0-9]+",
    "kernel": "wi|wi_0|wi_1|wo",
}


def embedding_name(table: Table) -> str:
    """What a layout calls the embedding."""
    (name,) = (row[1] for row in table if row[0] == EMBEDDING)
    return name


def entries(backbone: Any, table: Table) -> list[Entry]:
    """Where each weight of a backbone lies in another layout.

    Args:
        backbone: A backbone of this library.
        table: One of the tables of this module.

    Returns:
        An `Entry` for each weight, in the order of `backbone.weights`.

    Raises:
        ValueError: if the layout has no place for one of the weights.
    """
    return [_entry(variable, table) for variable in variables(backbone)]


def variables(backbone: Any) -> list[Any]:
    """The weights of a backbone that a checkpoint holds.

    The statistics of the last batch's routing are variables too, for the sake
    of compiled code, but no checkpoint keeps them.
    """
    return [v for v in backbone.weights if "/routing_stats/" not in v.path]


def check_plain(name: str, backbone: Any) -> None:
    """Refuses a model with quantized weights or with adapters.

    Args:
        name: Of the argument that holds it.
        backbone: A backbone of this library.

    Raises:
        ValueError: naming a weight.
    """
    for variable in variables(backbone):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        if "lora_kernel" in variable.path or "float" not in dtype:
            raise ValueError(
                f"{name} must not be quantized, and its adapters must be "
                "merged (save it to a preset and load that); received one "
                f"with {variable.path} of {dtype}."
            )


def _entry(variable, table):
    path, shape = variable.path, tuple(variable.shape)
    for ours, theirs, transposed in table:
        match = re.fullmatch(_pattern(ours), path)
        if match is None:
            continue
        stacked = "{e}" in theirs
        # A name without `{e}` is formatted to itself each time.
        names = tuple(
            theirs.format(**match.groupdict(), e=e)
            for e in range(shape[0] if stacked else 1)
        )
        source_shape = shape[1:] if stacked else shape
        if transposed:
            source_shape = source_shape[::-1]
        return Entry(path, shape, names, transposed, source_shape)
    raise ValueError(
        "The layout must have a place for every weight; received a backbone "
        f"with {path}, for which it has none."
    )


def _pattern(ours):
    parts = re.split(r"\{(\w+)\}", ours)
    return "".join(
        f"(?P<{part}>{_PLACES[part]})" if i % 2 else re.escape(part)
        for i, part in enumerate(parts)
    )
