"""How large a model is, and what a token costs, without building it."""

import collections
import inspect
import math
import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_switch.files import read_json
from keras_switch.layers.routers import get_router
from keras_switch.models.backbone_arguments import (
    check_arguments,
    check_known,
    is_decoder_only,
)
from keras_switch.models.presets import resolve_preset
from keras_switch.models.switch_backbone import SwitchBackbone
from keras_switch.models.switch_causal_backbone import SwitchCausalBackbone
from keras_switch.models.weight_shapes import weight_shapes

_BACKBONES = (SwitchBackbone, SwitchCausalBackbone)
_IGNORED = ("name", "trainable", "dtype")


def count_parameters(preset_or_config: Any) -> dict[str, int]:
    """Counts the parameters and the operations of a model, from its shape.

    Nothing is allocated: a model of a trillion parameters counts as fast as a
    small one.

    - `total`: all trainable parameters, with the logits kernel of an untied
      model. A tied embedding counts once.
    - `active`: those that one token uses that goes through the encoder, if
      there is one, and the decoder: `total` less, in every sparse layer, the
      experts that the token is not sent to. The embedding counts once, and
      whole. Where experts choose tokens, a token uses `capacity_factor` of
      them on average.
    - `flops`: operations of one forward pass for one token through the encoder
      and one through the decoder, 2 for each multiply-add: all products with
      a kernel, those of routers and logits included. What grows with the
      length of the sequence is left out, namely the scores of attention and
      the sums they weigh, `4 * num_heads * key_value_dim` per key and
      attention; so are norms, activations and the embedding look-up.

    Args:
        preset_or_config: Name or folder of a preset, a dict of arguments of
            `SwitchBackbone` or `SwitchCausalBackbone`, or one of these.

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
    config = arguments_of(preset_or_config)
    logits = config["vocabulary_size"] * config["hidden_dim"]
    total = active = 0
    products, experts = logits, collections.Counter()
    for path, shape in weight_shapes(config).items():
        size = math.prod(shape)
        total += size
        layer, is_expert, weight = path.partition("/experts/")
        if is_expert:
            experts[layer, weight.endswith("kernel")] += size
            continue
        active += size
        products += size if path.endswith("kernel") else 0
    for (layer, multiplied), size in experts.items():
        used = round(_chosen(config, layer) * size / config["num_experts"])
        active += used
        products += used if multiplied else 0
    return {"total": total, "active": active, "flops": 2 * products}


def _chosen(config, layer):
    """Experts of a token, on average where experts choose tokens."""
    identifier = config["router"]
    if layer.startswith("decoder") and config["decoder_router"] is not None:
        identifier = config["decoder_router"]
    chosen = get_router(identifier, config["num_experts"]).num_choices
    return min(chosen or config["capacity_factor"], config["num_experts"])


def arguments_of(preset_or_config: Any) -> dict[str, Any]:
    """All arguments of a backbone, those left out by their default.

    Args:
        preset_or_config: As for `count_parameters`.

    Raises:
        ValueError: if the arguments describe no model.
    """
    given = preset_or_config
    if isinstance(given, _BACKBONES):
        given = given.get_config()
    elif isinstance(given, str | os.PathLike):
        given = _read_config(given)
    elif not isinstance(given, Mapping):
        raise ValueError(
            "preset_or_config must be a name, a folder, a dict or a backbone; "
            f"received {preset_or_config!r}."
        )
    given = {k: v for k, v in given.items() if k not in _IGNORED}
    cls = SwitchCausalBackbone if is_decoder_only(given) else SwitchBackbone
    parameters = dict(inspect.signature(cls.__init__).parameters)
    for name in ("self", "kwargs", "dtype"):
        del parameters[name]
    check_known(cls.__name__, given, parameters)
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
    if name not in map(keras.saving.get_registered_name, _BACKBONES):
        raise ValueError(
            f"Preset {preset!r} must hold a SwitchBackbone or a "
            f"SwitchCausalBackbone; received {name!r}."
        )
    return config["config"]
