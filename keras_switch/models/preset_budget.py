"""How much memory a model would take, before a layer of it is built."""

import math
import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_switch.models.backbone_arguments import (
    check_arguments,
    is_decoder_only,
)
from keras_switch.models.preset_config import defaults_of
from keras_switch.models.preset_fields import Place
from keras_switch.models.weight_shapes import weight_shapes

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def weight_count(arguments: Mapping[str, Any]) -> int:
    """The number of trainable weights of a backbone, from its arguments.

    Args:
        arguments: All arguments of a backbone, by name, checked.
    """
    return sum(map(math.prod, weight_shapes(arguments).values()))


def check_size(
    file: Any,
    arguments: Mapping[str, Any],
    max_bytes: int | None = None,
    found: int | None = None,
) -> None:
    """Refuses a model that is too large, or larger than its files.

    Args:
        file: What describes it.
        arguments: Those of a backbone, by name; `dtype` is a policy.
        max_bytes: The most that its weights may take; `None`: the memory that
            is free.
        found: How many numbers are in its files, where weights are loaded.

    Raises:
        CheckpointError: saying how much it would be, or must be.
        ValueError: if the arguments describe no model.
    """
    # Models import this module.
    from keras_switch.models.switch_backbone import SwitchBackbone
    from keras_switch.models.switch_causal_backbone import SwitchCausalBackbone

    alone = is_decoder_only(arguments)
    cls = SwitchCausalBackbone if alone else SwitchBackbone
    arguments = {**defaults_of(cls), **arguments}
    check_arguments(arguments)
    count, place = weight_count(arguments), Place(file, "size")
    room = free_bytes() if max_bytes is None else max_bytes
    needed = count * _bytes_each(arguments["dtype"])
    if needed > room:
        raise place.refuse(
            f"at most {room:,} bytes of weights",
            f"{needed:,}",
            "max_bytes=... lets in a larger model.",
        )
    # A byte holds two weights in int4.
    if found is not None and found < count // 2:
        raise place.refuse(
            f"at least {count // 2:,} numbers, for the model that the "
            "configuration describes",
            f"{found:,}",
        )


def _bytes_each(dtype):
    policy = keras.dtype_policies.get(dtype)
    maps = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    if maps or policy.quantization_mode is not None:
        return 1
    return _BYTES.get(policy.variable_dtype, 4)


def free_bytes() -> int:
    """Bytes of memory that are free, or of all memory where nothing tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
