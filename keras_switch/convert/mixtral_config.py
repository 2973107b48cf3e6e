"""`config.json` of model type `mixtral`, read into our arguments and written.

Mixtral is a `SwitchCausalBackbone` whose every layer is sparse, with rotary
positions, grouped queries, RMS norms, gated experts and the renormalised gates
of `TopKRouter`.
"""

from typing import Any

import keras

from keras_switch.convert import rules
from keras_switch.convert.configuration import (
    ConfigField,
    Configuration,
    read_field,
    refuse_unless,
)
from keras_switch.files import CheckpointError
from keras_switch.layers import TopKRouter

# Ours, by theirs: where they have two names, ours is written as the first.
_ACTIVATIONS = {
    "silu": "gated-silu",
    "swish": "gated-silu",
    "gelu_pytorch_tanh": "gated-gelu",
    "relu": "gated-relu",
}
# Defaults are those of `transformers` where a file leaves a field out.
_FIELDS = {
    "vocab_size": ConfigField(int, 32000, 1, "vocabulary_size"),
    "hidden_size": ConfigField(int, 4096, 1, "hidden_dim"),
    "intermediate_size": ConfigField(int, 14336, 1, "intermediate_dim"),
    "num_hidden_layers": ConfigField(int, 32, 1, "num_layers"),
    "num_attention_heads": ConfigField(int, 32, 1, "num_heads"),
    "num_local_experts": ConfigField(int, 8, 1, "num_experts"),
    "rms_norm_eps": ConfigField(float, 1e-5, 0, "layer_norm_epsilon"),
    "num_experts_per_tok": ConfigField(int, 2, 2),
    "router_aux_loss_coef": ConfigField(float, 0.001, 0),
    "router_jitter_noise": ConfigField(float, 0.0, 0),
    "hidden_act": ConfigField(str, "silu"),
    "tie_word_embeddings": ConfigField(bool, False),
}
_OPTIONAL = {
    "head_dim": ConfigField(int, None, 1),
    "num_key_value_heads": ConfigField(int, 8, 1),
}
_THETA = ConfigField(float, 1e6, 1)


def read(path: Any, config: dict) -> Configuration:
    """Reads a `config.json` of model type `mixtral`.

    Args:
        path: The file, for messages.
        config: What it holds.

    Raises:
        CheckpointError: if a field is not what it must be, or says something
            that a `SwitchCausalBackbone` is not.
    """
    fields = {n: read_field(path, config, n, f) for n, f in _FIELDS.items()}
    for name, field in _OPTIONAL.items():
        if config.get(name, field.default) is not None:
            fields[name] = read_field(path, config, name, field)
    _check_window(path, config)
    activation = fields["hidden_act"]
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            path, "hidden_act", f"one of {', '.join(_ACTIVATIONS)}", activation
        )
    arguments = {
        field.ours: fields[name]
        for name, field in _FIELDS.items()
        if field.ours
    }
    arguments |= {
        "key_value_dim": fields.get("head_dim"),
        "num_key_value_heads": fields.get("num_key_value_heads"),
        "rotary_max_wavelength": _theta(path, config),
        "router": _router(fields),
        "activation": _ACTIVATIONS[activation],
        "sparse_step": 1,
        "position": "rotary",
        # Their experts have no capacity, in training neither.
        "dispatch": "dropless",
        # Tied ones are not scaled there: untied with equal kernels, here.
        "tie_embedding_weights": False,
    }
    return Configuration(config, arguments, rules.MIXTRAL, None)


def _check_window(path, config):
    window = config.get("sliding_window")
    if window is not None:
        raise CheckpointError(
            path,
            "sliding_window",
            "null: our attention sees every earlier token",
            repr(window),
        )


def _theta(path, config):
    """The base of the rotary positions, where either version has it."""
    rope = config.get("rope_parameters")
    scaling = config.get("rope_scaling") if rope is None else rope
    if scaling is not None:
        kind = scaling.get("rope_type") if isinstance(scaling, dict) else None
        if kind != "default":
            raise CheckpointError(
                path, "rope_parameters", 'of rope_type "default"', repr(scaling)
            )
    return read_field(path, config if rope is None else rope, *_ROPE)


_ROPE = ("rope_theta", _THETA)


def _router(fields):
    jitter = fields["router_jitter_noise"]
    noise = {"exploration": "input_jitter", "jitter": jitter}
    router = TopKRouter(
        k=fields["num_experts_per_tok"],
        second_policy="all",
        load_balancing_loss_weight=fields["router_aux_loss_coef"],
        **(noise if jitter else {"exploration": "argmax"}),
    )
    return keras.saving.serialize_keras_object(router)


def configuration_of(backbone: Any) -> Configuration:
    """The `config.json` of a `SwitchCausalBackbone`.

    Args:
        backbone: A `SwitchCausalBackbone`.

    Returns:
        A `Configuration`, without arguments.

    Raises:
        ValueError: if Mixtral is no such model, and why.
    """
    layers = [layer.feed_forward for layer in backbone.transformer_layers]
    _check_shape(backbone, layers)
    router = layers[0].router
    _check_router(router)
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    jittered = router.exploration == "input_jitter"
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        **{n: getattr(backbone, f.ours) for n, f in _FIELDS.items() if f.ours},
        "intermediate_size": layers[0].intermediate_dim,
        "head_dim": backbone.key_value_dim,
        "num_key_value_heads": backbone.num_key_value_heads
        or backbone.num_heads,
        "hidden_act": names[layers[0].activation],
        "num_experts_per_tok": router.k,
        "router_aux_loss_coef": router.load_balancing_loss_weight,
        "router_jitter_noise": router.jitter if jittered else 0.0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": backbone.rotary_max_wavelength,
        },
        "sliding_window": None,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "use_cache": True,
    }
    return Configuration(config, {}, rules.MIXTRAL, None)


def _check_shape(backbone, layers):
    for what, wanted, received in (
        ("position", "rotary", backbone.position),
        ("norm", "rms", backbone.norm),
        ("use_bias", False, backbone.use_bias),
        ("extra_feed_forward", False, backbone.extra_feed_forward),
        ("num_shared_experts", 0, backbone.num_shared_experts),
        ("expert_blocks", 1, backbone.expert_blocks),
        ("tie_embedding_weights", False, backbone.tie_embedding_weights),
    ):
        refuse_unless(received == wanted, what, repr(wanted), repr(received))
    sparse = [i for i, x in enumerate(layers) if hasattr(x, "router")]
    refuse_unless(
        len(sparse) == len(layers),
        "Every layer",
        "sparse",
        f"sparse layers {sparse} of {len(layers)}",
    )
    refuse_unless(
        layers[0].activation in _ACTIVATIONS.values(),
        "The activation of the experts",
        f"one of {', '.join(sorted(set(_ACTIVATIONS.values())))}",
        repr(layers[0].activation),
    )
    limits = (backbone.eval_capacity_factor, backbone.capacity)
    refuse_unless(
        limits == (None, None),
        "The capacity in evaluation",
        "absent",
        f"eval_capacity_factor={limits[0]}, capacity={limits[1]}",
    )


def _check_router(router):
    fits = (
        isinstance(router, TopKRouter)
        and router.k > 1
        and router.second_policy != "threshold"
    )
    refuse_unless(
        fits,
        "The router",
        "a TopKRouter of k above 1 that keeps every choice in evaluation",
        f"{type(router).__name__} {router.get_config()}",
    )
