"""What `plan.py` finds out, and says. Imports Keras: import it in `main`."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_switch_train import abstract_step
from keras_switch_train.collectives import KINDS

_STACKS = ("num_encoder_layers", "num_decoder_layers")


def plan(
    arguments: Mapping[str, Any],
    batch: abstract_step.Batch,
    layout_map: Any,
    layers: int,
) -> dict[str, Any]:
    """What a step costs one device.

    Args:
        arguments: All arguments of `SwitchBackbone`, and `dtype`.
        batch: Its size, of all devices.
        layout_map: A `LayoutMap`.
        layers: How many of each stack to compile, and twice as many; 0: all.

    Returns:
        A dict of numbers: of `abstract_step.costs` and `state_bytes`, and
        `compiled`, the layers that were.
    """
    policy = keras.dtype_policies.get(arguments["dtype"])
    itemsize = 2 if policy.variable_dtype.endswith("16") else 4
    state = abstract_step.state_bytes(arguments, layout_map, itemsize)
    depth = max(arguments[name] for name in _STACKS)
    if not layers or depth <= 2 * layers:
        return {**state, **least(arguments, batch), "compiled": [depth]}
    # Of one order each: two programs of different ones say nothing of a layer.
    rest = (depth - layers) / layers
    orders = [
        {
            name: round(few[name] + rest * (more[name] - few[name]))
            for name in few
        }
        for few, more in zip(
            _costs(_cut(arguments, layers), batch),
            _costs(_cut(arguments, 2 * layers), batch),
            strict=True,
        )
    ]
    found = min(orders, key=lambda costs: costs["temporary"])
    return {**state, **found, "compiled": [layers, 2 * layers]}


def least(
    arguments: Mapping[str, Any], batch: abstract_step.Batch
) -> dict[str, Any]:
    """What a step costs in the order that needs less memory; see `plan`."""
    costs = _costs(arguments, batch)
    return min(costs, key=lambda found: found["temporary"])


def _costs(arguments, batch):
    lowered = abstract_step.lower_step(arguments, batch)
    return [abstract_step.costs(p) for p in abstract_step.programs(lowered)]


def _cut(arguments, layers):
    changes = {name: layers for name in _STACKS}
    for stack in ("encoder", "decoder"):
        step = arguments[f"{stack}_sparse_step"]
        if isinstance(step, list | tuple):
            raise ValueError(
                "layers must be 0 where sparse layers are listed: others are "
                "not like the first ones."
            )
        if step and layers % step:
            raise ValueError(
                f"layers must be a multiple of {stack}_sparse_step={step}; "
                f"received layers={layers}."
            )
    return {**arguments, **changes}


def text(result: Mapping[str, Any], device_memory: float) -> str:
    """The report for people.

    Args:
        result: From `plan`, with `preset`, `mesh`, `dtype`, `topology`,
            `rematerialize`, `batch`.
        device_memory: Gigabytes of a device.
    """
    total = sum(result[n] for n in ("weights", "optimizer", "temporary")) / 1e9
    verdict = "fits in" if total <= device_memory else "does not fit in"
    axes = ", ".join(f"{n} {size}" for n, size in result["mesh"].items())
    devices = int(np.prod(list(result["mesh"].values())))
    compiled = " and ".join(map(str, result["compiled"]))
    sizes = result["batch"]
    how = result["dtype"]
    how += ", rematerialized" if result["rematerialize"] else ""
    devices = f"{devices} {result['topology'] or 'virtual'} devices"
    lines = [
        f"{result['preset']}, {how}, on {devices} ({axes})",
        f"batch of {sizes['rows']} rows, {sizes['input_length']} tokens in, "
        f"{sizes['target_length']} out; compiled with {compiled} layers a "
        "stack",
        "",
        "one device:",
        f"  weights       {result['weights'] / 1e9:12.3f} GB",
        f"  optimizer     {result['optimizer'] / 1e9:12.3f} GB",
        f"  temporary     {result['temporary'] / 1e9:12.3f} GB",
        f"  together      {total:12.3f} GB, which {verdict} "
        f"{device_memory:g} GB",
        f"  FLOPs a step  {result['flops'] / 1e12:12.3f} T",
        "",
        "collectives of a step, and the bytes of their results on one device:",
    ]
    for kind in KINDS:
        count, size = result[f"{kind}, count"], result[f"{kind}, bytes"]
        lines.append(f"  {kind:20s}{count:6,d}{size / 1e6:14,.1f} MB")
    return "\n".join(lines)
