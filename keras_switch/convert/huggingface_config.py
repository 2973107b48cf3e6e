"""`config.json` of `transformers`, read into our arguments and written."""

import os
from typing import Any

import keras

from keras_switch.convert import mixtral_config, rules
from keras_switch.convert.configuration import (
    ConfigField,
    Configuration,
    read_field,
    refuse_unless,
)
from keras_switch.files import CheckpointError, read_json
from keras_switch.layers import SwitchLayer, SwitchRouter, TopKRouter
from keras_switch.models import SwitchCausalBackbone

# Drops nothing: more slots than any sequence has tokens.
_NO_CAPACITY = 1 << 20


# Defaults are those of `transformers` where a file leaves a field out.
_COMMON = {
    "vocab_size": ConfigField(int, 32128, 1, "vocabulary_size"),
    "d_model": ConfigField(int, None, 1, "hidden_dim"),
    "d_kv": ConfigField(int, 64, 1, "key_value_dim"),
    "d_ff": ConfigField(int, 2048, 1, "intermediate_dim"),
    "num_layers": ConfigField(int, None, 1, "num_encoder_layers"),
    "num_decoder_layers": ConfigField(int, None, 1, "num_decoder_layers"),
    "num_heads": ConfigField(int, None, 1, "num_heads"),
    "relative_attention_num_buckets": ConfigField(
        int, 32, 2, "relative_attention_num_buckets"
    ),
    "relative_attention_max_distance": ConfigField(
        int, 128, 1, "relative_attention_max_distance"
    ),
    "dropout_rate": ConfigField(float, 0.1, 0, "dropout"),
    "layer_norm_epsilon": ConfigField(float, 1e-6, 0, "layer_norm_epsilon"),
    "tie_word_embeddings": ConfigField(
        bool, True, None, "tie_embedding_weights"
    ),
}
_SWITCH = {
    **_COMMON,
    "num_experts": ConfigField(int, 8, 1, "num_experts"),
    "num_sparse_encoder_layers": ConfigField(int, 3, 0),
    "num_sparse_decoder_layers": ConfigField(int, 3, 0),
    "expert_capacity": ConfigField(int, 64, 1),
    "router_jitter_noise": ConfigField(float, 0.01, 0),
    "router_z_loss_coef": ConfigField(float, 0.001, 0),
    "router_aux_loss_coef": ConfigField(float, 0.001, 0),
    "router_bias": ConfigField(bool, False),
    "dense_act_fn": ConfigField(str, "relu"),
}
_T5 = {
    **_COMMON,
    "feed_forward_proj": ConfigField(str, "relu"),
    "scale_decoder_outputs": ConfigField(bool, True),
}
_MODEL_TYPES = ("switch_transformers", "t5", "mixtral")
_START, _END = 0, 1  # <pad> and </s>


def read_configuration(path: str | os.PathLike) -> Configuration:
    """Reads a `config.json` of model type `switch_transformers`, `t5` or
    `mixtral`.

    Args:
        path: The file.

    Returns:
        A `Configuration`.

    Raises:
        CheckpointError: if a field is not what it must be, or says something
            that no backbone of ours is.
    """
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise CheckpointError(
            path, "model_type", f"one of {', '.join(_MODEL_TYPES)}", repr(kind)
        )
    if kind == "mixtral":
        return mixtral_config.read(path, config)
    schema = _SWITCH if kind == "switch_transformers" else _T5
    fields = {n: read_field(path, config, n, f) for n, f in schema.items()}
    if fields["num_decoder_layers"] is None:
        fields["num_decoder_layers"] = fields["num_layers"]
    _check_tokens(path, config)
    arguments = {
        field.ours: fields[name] for name, field in schema.items() if field.ours
    }
    if kind == "t5":
        arguments |= _t5_arguments(path, fields)
        return Configuration(config, arguments, rules.HUGGINGFACE_T5, None)
    arguments |= _switch_arguments(path, fields)
    capacity = fields["expert_capacity"]
    return Configuration(config, arguments, rules.HUGGINGFACE, capacity)


def _check_tokens(path, config):
    """Our models start from `<pad>`, 0, and end with `</s>`, 1."""
    for name, wanted in (
        ("pad_token_id", _START),
        ("decoder_start_token_id", _START),
        ("eos_token_id", _END),
    ):
        value = config.get(name, wanted)
        if value is not None and value != wanted:
            raise CheckpointError(path, name, wanted, repr(value))


def _t5_arguments(path, fields):
    activation = fields["feed_forward_proj"]
    if activation not in ("relu", "gated-gelu"):
        raise CheckpointError(
            path, "feed_forward_proj", '"relu" or "gated-gelu"', activation
        )
    # Newer files say it in a field of its own, and "tied" always.
    tied = fields["tie_word_embeddings"] and fields["scale_decoder_outputs"]
    return {
        "activation": activation,
        "num_experts": None,
        "encoder_sparse_step": 0,
        "decoder_sparse_step": 0,
        "tie_embedding_weights": tied,
        "init_scale": 1.0,
    }


def _switch_arguments(path, fields):
    if fields["router_bias"]:
        raise CheckpointError(
            path, "router_bias", "false: our routers have none", "true"
        )
    if fields["dense_act_fn"] != "relu":
        raise CheckpointError(
            path, "dense_act_fn", '"relu"', repr(fields["dense_act_fn"])
        )
    sparse = {
        f"{stack}_sparse_step": _sparse_layers(
            fields[layers], fields[f"num_sparse_{stack}_layers"]
        )
        for stack, layers in (
            ("encoder", "num_layers"),
            ("decoder", "num_decoder_layers"),
        )
    }
    router = SwitchRouter(
        **_exploration(fields["router_jitter_noise"]),
        load_balancing_loss_weight=fields["router_aux_loss_coef"],
        z_loss_weight=fields["router_z_loss_coef"],
    )
    router = keras.saving.serialize_keras_object(router)
    return {**sparse, "router": router, "activation": "relu"}


def _exploration(jitter):
    if not jitter:
        return {"exploration": "argmax"}
    return {"exploration": "input_jitter", "jitter": jitter}


def _sparse_layers(num_layers: int, num_sparse: int) -> list[int]:
    """The sparse layers of a stack, as `transformers` counts them.

    Its step is `num_layers // num_sparse`, or `num_layers` for none; layer
    `i` is sparse if `i % step == 1`, or if the step is 1. So "none" makes
    layer 1 sparse (the only one, if there is one layer), and a step above 2
    is not the paper's `i % step == step - 1`.
    """
    step = num_layers // num_sparse if num_sparse else num_layers
    if step == 0:
        return []
    return [i for i in range(num_layers) if step == 1 or i % step == 1]


def configuration_of(backbone: Any) -> Configuration:
    """The `config.json` of a backbone.

    Args:
        backbone: A `SwitchBackbone` or a `SwitchCausalBackbone`.

    Returns:
        A `Configuration`, without arguments.

    Raises:
        ValueError: if `transformers` cannot represent the model, and why.
    """
    if isinstance(backbone, SwitchCausalBackbone):
        return mixtral_config.configuration_of(backbone)
    stacks = backbone.stacks
    sparse = {
        stack: [i for i, layer in enumerate(layers) if _is_sparse(layer)]
        for stack, layers in stacks.items()
    }
    layers = [
        layer.feed_forward
        for stack in stacks.values()
        for layer in stack
        if _is_sparse(layer)
    ]
    schema = _SWITCH if layers else _T5
    config = {
        "model_type": "switch_transformers" if layers else "t5",
        **_SPECIAL,
        **{n: getattr(backbone, f.ours) for n, f in schema.items() if f.ours},
    }
    if not layers:
        config |= _t5_fields(backbone)
        return Configuration(config, {}, rules.HUGGINGFACE_T5, None)
    config |= _switch_fields(backbone, layers, sparse)
    capacity = config["expert_capacity"]
    return Configuration(config, {}, rules.HUGGINGFACE, capacity)


_SPECIAL = {
    "is_encoder_decoder": True,
    "pad_token_id": _START,
    "decoder_start_token_id": _START,
    "eos_token_id": _END,
    "dtype": "float32",
    "use_cache": True,
}


def _is_sparse(layer):
    return isinstance(layer.feed_forward, SwitchLayer)


def _t5_fields(backbone):
    refuse_unless(
        backbone.activation in ("relu", "gated-gelu"),
        "A dense model's activation",
        '"relu" or "gated-gelu"',
        repr(backbone.activation),
    )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "feed_forward_proj": backbone.activation,
        "scale_decoder_outputs": backbone.tie_embedding_weights,
    }


def _switch_fields(backbone, layers, sparse):
    refuse_unless(
        backbone.activation == "relu",
        "The activation of a sparse model",
        '"relu": its experts have no gated form',
        repr(backbone.activation),
    )
    refuse_unless(
        not backbone.extra_feed_forward,
        "extra_feed_forward",
        "False: a sparse layer has no dense one beside it",
        "True",
    )
    for layer in layers:
        _check_layer(layer)
    capacity = layers[0].capacity
    router = layers[0].router
    jittered = router.exploration == "input_jitter"
    fields = {
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "dense_act_fn": "relu",
        "num_experts": layers[0].num_experts,
        "expert_capacity": _NO_CAPACITY if capacity is None else capacity,
        "router_jitter_noise": router.jitter if jittered else 0.0,
        "router_z_loss_coef": router.z_loss_weight,
        "router_aux_loss_coef": router.load_balancing_loss_weight,
        "router_bias": False,
        "router_dtype": "float32",
    }
    for stack, indices in sparse.items():
        depth = getattr(backbone, f"num_{stack}_layers")
        name = f"num_sparse_{stack}_layers"
        fields[name] = _num_sparse(stack, depth, indices)
    return fields


def _check_layer(layer):
    router = layer.router
    refuse_unless(
        layer.num_shared_experts == 0,
        "num_shared_experts",
        "0",
        str(layer.num_shared_experts),
    )
    refuse_unless(
        layer.expert_blocks == 1,
        "expert_blocks",
        "1",
        str(layer.expert_blocks),
    )
    refuse_unless(
        # Not a subclass, whose gate may be another.
        router.num_choices == 1 and type(router) in _TOP_1,
        "The router",
        "top-1 with the softmax as its gate",
        type(router).__name__,
    )
    refuse_unless(
        not router.batch_prioritized or layer.capacity is None,
        "The order of an expert's queue",
        "left to right",
        "batch_prioritized=True",
    )
    refuse_unless(
        layer.capacity is not None or layer.eval_capacity_factor is None,
        "The capacity in evaluation",
        "absent, or a number of slots (capacity)",
        f"eval_capacity_factor={layer.eval_capacity_factor}",
    )
    refuse_unless(
        layer.capacity is None or layer.group_size is None,
        "A group",
        "one sequence where there is a capacity",
        f"group_size={layer.group_size}",
    )


_TOP_1 = (SwitchRouter, TopKRouter)


def _num_sparse(stack, depth, indices):
    # More sparse layers than layers: the only way to say "none".
    for count in (*range(depth + 1), depth + 1):
        if _sparse_layers(depth, count) == indices:
            return count
    choices = [_sparse_layers(depth, n) for n in range(depth + 2)]
    unique = sorted({tuple(choice) for choice in choices})
    raise ValueError(
        f"The sparse layers of the {stack} must be such as transformers can "
        f"count, one of {', '.join(str(list(c)) for c in unique)}; received "
        f"{indices}."
    )
