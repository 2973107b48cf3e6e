"""How a Switch Transformer is spread over a mesh of devices.

```python
mesh = keras.distribution.DeviceMesh((4, 2), ("batch", "model"))
layout_map = keras_switch.SwitchBackbone.get_layout_map(mesh)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout_map)
)
```

and every model made from there on lies on the mesh: `fit`, `evaluate`,
`generate`, `from_preset` and `save_to_preset` are what they were.

- Batches are split over the batch axis.
- So are the experts: each device holds some of them whole, and tokens travel
  to their experts and back by all-to-all.
- Over the model axis, if there is one, are split: the heads of attention, the
  hidden layer of every feed-forward and expert, the rows of the embedding.

Reference: Fedus et al. 2022, Switch Transformers (arXiv 2101.03961), section
5; experts on the data axis as in GShard (arXiv 2006.16668).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_switch.ops.layout import check_backend, indivisible_axis, split

_AUTO = "auto"
# Before what the rules name, models may stand that hold the layers.
_ANYWHERE = "(.*/)?"


class SwitchLayoutMap(keras.distribution.LayoutMap):
    """A `LayoutMap` that knows which of its rules the library made.

    Rules of your own may be added; the most exact way is the whole path of a
    weight, which comes before every pattern:
    `layout_map["token_embedding/embeddings"] = (None, None)`.

    Args:
        device_mesh: A `keras.distribution.DeviceMesh`.
        rules: Layouts by pattern.
    """

    def __init__(
        self, device_mesh: Any, rules: Mapping[str, tuple] | None = None
    ) -> None:
        super().__init__(device_mesh)
        for pattern, axes in (rules or {}).items():
            self[_ANYWHERE + pattern] = axes
        self._library_rules = frozenset(self)

    @property
    def own_rules(self) -> list[str]:
        """Those that were added."""
        return [rule for rule in self if rule not in self._library_rules]


def get_layout_map(
    device_mesh: Any,
    model_parallel_dim_name: str | None = _AUTO,
    data_parallel_dim_name: str = "batch",
    expert_parallel_dim_name: str | None = _AUTO,
) -> SwitchLayoutMap:
    """Layouts of every weight and of the buffers of dispatch.

    Args:
        device_mesh: A `keras.distribution.DeviceMesh`.
        model_parallel_dim_name: The axis of the mesh that splits heads, hidden
            layers and the vocabulary; `None` for no axis; by default
            `"model"`, if the mesh has it.
        data_parallel_dim_name: The axis that splits batches.
        expert_parallel_dim_name: The axis that splits experts; by default
            that of batches. `None` gives every device all experts.

    Returns:
        A `SwitchLayoutMap` for `keras.distribution.ModelParallel`.

    Raises:
        ValueError: if the mesh has no such axis.
        RuntimeError: if the backend is not JAX.
    """
    check_backend()
    names = tuple(device_mesh.axis_names)
    model, batch = model_parallel_dim_name, data_parallel_dim_name
    if model == _AUTO:
        model = "model" if "model" in names else None
    expert = expert_parallel_dim_name
    expert = batch if expert == _AUTO else expert
    for argument, name in (
        ("model_parallel_dim_name", model),
        ("data_parallel_dim_name", batch),
        ("expert_parallel_dim_name", expert),
    ):
        if name is not None and name not in names:
            raise ValueError(
                f"{argument} must be an axis of the mesh, one of "
                f"{', '.join(names)}; received {name!r}."
            )
    if model is not None and model in (batch, expert):
        raise ValueError(
            "model_parallel_dim_name must be another axis than that of batches "
            f"and of experts; received {model!r} for both."
        )
    rules = _rules(batch, model, expert)
    return SwitchLayoutMap(device_mesh, {**rules, **_of_adapters(rules)})


def _rules(batch, model, expert):
    experts_hold = None if expert == batch else batch
    dense = "((extra_)?feed_forward|shared_expert)"
    experts = r"experts(/block_\d+)?"
    return {
        "token_embedding/embeddings": (model, None),
        "token_embedding/reverse_embeddings": (None, model),
        # Learned ones: few rows, which every device reads.
        "position_embedding/embeddings": (None, None),
        r"([a-z]+_)?relative_attention_bias(_\d+)?/embeddings": (None, model),
        "(self|cross)_attention/(query|key|value)/kernel": (None, model),
        "(self|cross)_attention/(query|key|value)/bias": (model,),
        "(self|cross)_attention/output/kernel": (model, None),
        "(self|cross)_attention/output/bias": (None,),
        f"{dense}/wi(_\\d)?/kernel": (None, model),
        f"{dense}/wi(_\\d)?/bias": (model,),
        f"{dense}/wo/kernel": (model, None),
        f"{dense}/wo/bias": (None,),
        f"{experts}/wi(_\\d)?/kernel": (expert, None, model),
        f"{experts}/wi(_\\d)?/bias": (expert, None, model),
        f"{experts}/wo/kernel": (expert, model, None),
        f"{experts}/wo/bias": (expert, None, None),
        "router/((noise_)?kernel|table)": (None, None),
        "router/scale": (),
        "router/(bias|routing_stats/value)": (None,),
        r"(seed_generator(_\d+)?/)?seed_generator_state": (None,),
        "[a-z_]*norm/(scale|bias)": (None,),
        # Buffers [G, E, C, D]: with the tokens, and with their experts.
        "buffers_at_tokens": (batch, None, None, None),
        "buffers_at_experts": (experts_hold, expert, None, None),
    }


def _of_adapters(rules):
    """LoRA's matrices, `[..., D, R]` and `[..., R, F]`, are split as the axes
    of their kernel `[..., D, F]` are."""
    found = {}
    for pattern, axes in rules.items():
        if pattern.endswith("/kernel"):
            *experts, first, last = axes
            stem = pattern.removesuffix("kernel")
            found[f"{stem}lora_kernel_a"] = (*experts, first, None)
            found[f"{stem}lora_kernel_b"] = (*experts, None, last)
    return found


def check_divisible(
    distribution: Any,
    shapes: Mapping[str, tuple[int, ...]],
    heads: Mapping[str, tuple[str, int]] | None = None,
) -> None:
    """Refuses layouts that weights do not fit, before any is made.

    Args:
        distribution: The present `keras.distribution.Distribution`.
        shapes: Of the weights, by path.
        heads: For `"query"`, `"key"`, `"value"` and `"output"`, the argument
            that says how many heads that product has, and their number: no
            head is to be split. By default only widths are looked at.

    Raises:
        ValueError: naming the weight, its rule and the axis.
    """
    for path, shape in shapes.items():
        layout = distribution.get_tensor_layout(path)  # refuses two rules
        if layout is None:
            continue
        said = f"{path} {tuple(shape)} with the layout {tuple(layout.axes)}"
        if len(layout.axes) != len(shape):
            raise ValueError(
                "A layout must have an entry for each axis of the weight; "
                f"received {said}."
            )
        argument, counted = _by_heads(path, shape, layout, heads or {})
        axis = indivisible_axis(counted, layout)
        if axis is None:
            continue
        name = layout.axes[axis]
        parts = split(layout.device_mesh, name)
        what = argument or _axis_of(path, axis)
        raise ValueError(
            f"{what} must be a multiple of {parts}, the size of the mesh's "
            f"axis {name!r}, which splits axis {axis} of {path}; received "
            f"{counted[axis]}, by {said}. Use another mesh, or a layout of its "
            f'own: layout_map["{path}"] = {(None,) * len(shape)}.'
        )


def _by_heads(path, shape, layout, heads):
    """Which argument counts the heads of a weight, if any; and its shape, with
    that number for the axis of the heads."""
    found = re.search(r"_attention/(query|key|value|output)/", path)
    if found is None or found[1] not in heads:
        return None, shape
    argument, count = heads[found[1]]
    sizes = zip(shape, layout.axes, strict=True)
    return argument, tuple(n if a is None else count for n, a in sizes)


def _axis_of(path, axis):
    """What an axis of a weight is called."""
    if "experts/" in path:
        return "num_experts" if axis == 0 else "intermediate_dim"
    if "embedding/" in path:
        return "vocabulary_size"
    if "attention" in path:
        return "num_heads"
    return "intermediate_dim"


def check_rules(layout_map: Any, paths: list[str]) -> None:
    """Refuses weights that no rule means, and rules that mean no weight.

    Args:
        layout_map: A `SwitchLayoutMap`.
        paths: Of all weights.

    Raises:
        ValueError: naming the weight or the rule.
    """
    for path in paths:
        if layout_map[path] is None:
            raise ValueError(
                f"Every weight must have a rule in the layout map; {path} has "
                f'none. Add one: layout_map["{path}"] = (None, ...), with as '
                "many entries as it has axes, lays it on every device whole."
            )
    for rule in layout_map.own_rules:
        used = any(rule == p or re.fullmatch(rule, p) for p in paths)
        # What a layer returns has no weight: Keras asks for "<path>/output".
        if not used and not rule.endswith("output"):
            raise ValueError(
                f"A rule of the layout map must match a weight; {rule!r} "
                f"matches none. Weights are called, for instance, {paths[0]}."
            )


def bytes_on_device(
    layout_map: Any, shapes: Mapping[str, tuple[int, ...]], itemsize: int = 4
) -> int:
    """What weights take on one device.

    Args:
        layout_map: A `LayoutMap`.
        shapes: Of the weights, by path.
        itemsize: Bytes of a number.
    """
    total = 0
    for path, shape in shapes.items():
        layout = layout_map[path]
        axes = (None,) * len(shape) if layout is None else layout.axes
        mesh = layout_map.device_mesh
        total += bytes_of_part(shape, axes, mesh, itemsize)
    return total


def bytes_of_part(
    shape: tuple[int, ...],
    axes: tuple[Any, ...],
    device_mesh: Any,
    itemsize: int = 4,
) -> int:
    """What one device holds of a tensor.

    Args:
        shape: Of the whole.
        axes: For each axis, the axis of the mesh that splits it, or `None`.
        device_mesh: A `keras.distribution.DeviceMesh`.
        itemsize: Bytes of a number.
    """
    parts = math.prod(split(device_mesh, name) for name in axes)
    return math.prod(shape) // parts * itemsize
