"""How large a model is, and what a token costs, without building it."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_switch.files import read_json
from keras_switch.layers.routers import get_router
from keras_switch.models.backbone_arguments import (
    check_arguments,
    check_known,
    sparse_stacks,
)
from keras_switch.models.presets import resolve_preset
from keras_switch.models.switch_backbone import SwitchBackbone

_IGNORED = ("name", "trainable", "dtype")


def count_parameters(preset_or_config: Any) -> dict[str, int]:
    """Counts the parameters and the operations of a model, from its shape.

    Nothing is allocated: a model of a trillion parameters counts as fast as a
    small one.

    - `total`: all trainable parameters, with the logits kernel of an untied
      model. A tied embedding counts once.
    - `active`: those that one token uses that goes through the encoder and
      the decoder: `total` less, in every sparse layer, the experts that the
      token is not sent to. The embedding counts once, and whole. Where experts
      choose tokens, a token uses `capacity_factor` of them on average.
    - `flops`: operations of one forward pass for one token through the encoder
      and one through the decoder, 2 for each multiply-add: all products with
      a kernel, those of routers and logits included. What grows with the
      length of the sequence is left out, namely the scores of attention and
      the sums they weigh, `4 * num_heads * key_value_dim` per key and
      attention; so are norms, activations and the embedding look-up.

    Args:
        preset_or_config: Name or folder of a preset, a dict of arguments of
            `SwitchBackbone`, or a `SwitchBackbone`.

    Returns:
        A dict of ints: `total`, `active`, `flops`.

    Raises:
        ValueError: if the arguments describe no model.

    Example:

    ```python
    >>> keras_switch.count_parameters("switch_base_8")["total"]
    619339008
    ```
    """
    config = _arguments(preset_or_config)
    width, vocabulary = config["hidden_dim"], config["vocabulary_size"]
    logits = vocabulary * width
    embedding = logits * (1 if config["tie_embedding_weights"] else 2)
    total = active = embedding
    products = logits
    encoder_sparse, decoder_sparse = sparse_stacks(config)
    for stack, sparse in (
        ("encoder", encoder_sparse),
        ("decoder", decoder_sparse),
    ):
        layers = config[f"num_{stack}_layers"]
        attentions = 1 if stack == "encoder" else 2
        kernels = layers * attentions * _attention(config)
        norms = (layers * (attentions + 1) + 1) * width
        positions = config["relative_attention_num_buckets"]
        positions *= config["num_heads"]
        dense = (layers - len(sparse)) * _feed_forward(config)
        everything, used = _sparse(config, stack, len(sparse))
        total += kernels + norms + positions + dense + everything
        active += kernels + norms + positions + dense + used
        products += kernels + dense + used
    return {"total": total, "active": active, "flops": 2 * products}


def _attention(config):
    width = config["hidden_dim"]
    heads, head_width = config["num_heads"], config["key_value_dim"]
    return 4 * width * (heads * (head_width or width // heads))


def _feed_forward(config):
    kernels = 3 if config["activation"].startswith("gated-") else 2
    return kernels * config["hidden_dim"] * config["intermediate_dim"]


def _sparse(config, stack, layers):
    """Parameters of the sparse layers of a stack: all, and those used."""
    if not layers:
        return 0, 0
    experts = config["num_experts"]
    identifier = config["router"]
    if stack == "decoder" and config["decoder_router"] is not None:
        identifier = config["decoder_router"]
    # None where experts choose tokens.
    chosen = get_router(identifier, experts).num_choices
    chosen = min(chosen or config["capacity_factor"], experts)
    router = config["hidden_dim"] * experts
    expert = _feed_forward(config)
    everything = layers * (router + experts * expert)
    return everything, layers * (router + round(chosen * expert))


def _arguments(preset_or_config):
    """All arguments of the backbone, checked, the left out by default."""
    given = preset_or_config
    if isinstance(given, SwitchBackbone):
        given = given.get_config()
    elif isinstance(given, str | os.PathLike):
        given = _read_config(given)
    elif not isinstance(given, Mapping):
        raise ValueError(
            "preset_or_config must be a name, a folder, a dict or a "
            f"SwitchBackbone; received {preset_or_config!r}."
        )
    given = {k: v for k, v in given.items() if k not in _IGNORED}
    parameters = dict(inspect.signature(SwitchBackbone.__init__).parameters)
    for name in ("self", "kwargs", "dtype"):
        del parameters[name]
    check_known("SwitchBackbone", given, parameters)
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in given and parameter.default is parameter.empty
    ]
    if missing:
        raise ValueError(
            f"preset_or_config must give {', '.join(missing)}; received "
            f"{', '.join(given) or 'nothing'}."
        )
    defaults = {name: p.default for name, p in parameters.items()}
    config = {**defaults, **given}
    check_arguments(config)
    return config


def _read_config(preset):
    folder = resolve_preset(preset)
    if "://" in folder:
        raise ValueError(
            "preset_or_config must be a local preset, nothing is downloaded; "
            f"received {preset!r}."
        )
    config = read_json(os.path.join(folder, "config.json"))
    name = config.get("registered_name")
    if name != keras.saving.get_registered_name(SwitchBackbone):
        raise ValueError(
            f"Preset {preset!r} must hold a SwitchBackbone; received {name!r}."
        )
    return config["config"]
