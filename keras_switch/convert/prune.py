"""Sparse models to smaller ones: fewer experts, or none."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops
from scipy.optimize import linear_sum_assignment

from keras_switch.convert.rules import check_plain, variables
from keras_switch.layers.validation import check_number

_EXPERTS = "/feed_forward/experts/"
_SPARSE = "/feed_forward/"


def prune_experts(model: Any, num_experts: int, report: Any) -> Any:
    """Keeps the experts of each layer that were used most.

    Their kernels, and what the router knows of them, are bit-equal to those
    of `model`; tokens of the others go to the best of those that are left.

    Args:
        model: A backbone or a task of this library, without adapters and not
            quantized. It is left as it is; its preprocessor is shared.
        num_experts: Experts to keep in each sparse layer, at least 1 and fewer
            than there are.
        report: `analysis.routing_report` of the backbone on data of the task
            that the model is to serve.

    Returns:
        A model of the kind of `model`.

    Raises:
        ValueError: if an argument is not as above, or the router goes by a
            table of experts.

    Example:

    ```python
    report = keras_switch.analysis.routing_report(lm.backbone, batches)
    small = keras_switch.convert.prune_experts(lm, 4, report)
    small.save_to_preset("runs/pruned")
    ```

    Reference: Kim et al. 2021 (arXiv 2109.10465), expert pruning.
    """
    loads = _loads(model, report, num_experts)
    kept = {name: _most_used(load, num_experts) for name, load in loads.items()}

    def expert(name, kernels):
        return {path: value[kept[name]] for path, value in kernels.items()}

    return _smaller(model, num_experts, kept, expert)


def merge_experts(model: Any, num_experts: int, report: Any) -> Any:
    """Merges the experts of each layer around those that were used most.

    Each of the other experts joins the one that the router confuses it with
    most: of the highest cosine of their columns of its kernel. An expert that
    joins has its hidden units put into the order of those that they are most
    alike, and the kernels of a group are averaged by load.

    Args, returns and raises: as `prune_experts`; the router must have a
    kernel, and experts must not be stacks.

    Reference: Li et al. 2024, MC-SMoE (arXiv 2310.01334).
    """
    _check_not_stacked(model)
    loads = _loads(model, report, num_experts)
    layers = _sparse_layers(_backbone(model))
    kept, groups = {}, {}
    for name, load in loads.items():
        kept[name] = _most_used(load, num_experts)
        groups[name] = _joined(name, layers[name].router, kept[name])

    def expert(name, kernels):
        merged = {path: [] for path in kernels}
        for group, head in enumerate(kept[name]):
            members = np.flatnonzero(groups[name] == group)
            # An expert nobody used joins with nothing.
            weight = loads[name][members]
            weight = weight / weight.sum() if weight.sum() else members == head
            parts = [_aligned(kernels, member, head) for member in members]
            for path in kernels:
                stack = np.stack([part[path] for part in parts])
                merged[path].append(np.tensordot(weight, stack, 1))
        return {path: np.stack(values) for path, values in merged.items()}

    return _smaller(model, num_experts, kept, expert)


def extract_dense(model: Any, report: Any) -> Any:
    """Keeps of each sparse layer its most used expert, as a dense layer.

    Its output is scaled, as the router did on average, by the mean gate of the
    tokens that it got.

    Args:
        model: As `prune_experts`. Its experts must be as wide as the
            feed-forwards of its dense layers, if it has some, and no stacks.
        report: As `prune_experts`.

    Returns:
        A model of the kind of `model`, without sparse layers.

    Raises:
        ValueError: if an argument is not as above.

    Reference: Kudugunta et al. 2021 (arXiv 2110.03742), on sub-networks that
    serve one task.
    """
    _check_not_stacked(model)
    loads = _loads(model, report, 0)
    gates = {layer.name: layer.mean_gate for layer in report.layers}
    kept = {name: _most_used(load, 1) for name, load in loads.items()}

    def expert(name, kernels):
        chosen = {path: value[kept[name][0]] for path, value in kernels.items()}
        for path in chosen:
            if "/wo/" in path:
                chosen[path] = chosen[path] * gates[name][kept[name][0]]
        return chosen

    return _smaller(model, None, kept, expert)


def _check_not_stacked(model: Any) -> None:
    for name, layer in _sparse_layers(_backbone(model)).items():
        if layer.expert_blocks > 1:
            raise ValueError(
                f"expert_blocks must be 1; {name} has {layer.expert_blocks}: "
                "a stack is neither one feed-forward nor has it hidden units "
                "of another's to be put into order by. Use prune_experts."
            )


def _backbone(model: Any) -> Any:
    return getattr(model, "backbone", model)


def _sparse_layers(backbone: Any) -> dict[str, Any]:
    return {
        layer.name: layer.feed_forward
        for stack in backbone.stacks.values()
        for layer in stack
        if hasattr(layer.feed_forward, "router")
    }


def _loads(model: Any, report: Any, num_experts: int) -> dict[str, np.ndarray]:
    """The load of each sparse layer, after everything has been checked."""
    backbone = _backbone(model)
    if not hasattr(backbone, "stacks"):
        raise ValueError(
            "model must be a backbone of this library or a task around one; "
            f"received {type(model).__name__}."
        )
    layers = _sparse_layers(backbone)
    if not layers:
        raise ValueError("model must have a sparse layer; it has none.")
    if num_experts:
        check_number("num_experts", num_experts, whole=True, at_least=1)
    if num_experts >= backbone.num_experts:
        raise ValueError(
            "num_experts must be less than the model's; received "
            f"{num_experts} of {backbone.num_experts}."
        )
    for name, layer in layers.items():
        if layer.router.needs_token_ids:
            raise ValueError(
                f"the router of {name} must choose by its kernel; a "
                f"{type(layer.router).__name__} has a table of experts."
            )
    check_plain("model", backbone)
    loads = {layer.name: np.asarray(layer.load) for layer in report.layers}
    wanted = {name: (layer.num_experts,) for name, layer in layers.items()}
    if {name: load.shape for name, load in loads.items()} != wanted:
        raise ValueError(
            "report must be of this model's layers and experts, "
            f"{wanted}; received one of "
            f"{ {name: load.shape for name, load in loads.items()} }."
        )
    return loads


def _most_used(load: np.ndarray, count: int) -> np.ndarray:
    """Indices of the experts of highest load, ascending; ties to the lowest."""
    return np.sort(np.argsort(-load, kind="stable")[:count])


def _joined(name: str, router: Any, kept: np.ndarray) -> np.ndarray:
    """int `[E]`: which of those kept each expert joins, by their position."""
    kernel = getattr(router, "kernel", None)
    if kernel is None:
        raise ValueError(
            f"the router of {name} must have a kernel to tell which experts "
            f"are alike; a {type(router).__name__} has none."
        )
    columns = ops.convert_to_numpy(ops.cast(kernel, "float32"))  # [D, E]
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-30)
    groups = np.argmax(columns.T @ columns[:, kept], axis=1)
    groups[kept] = np.arange(len(kept))
    return groups


def _aligned(kernels: dict, member: int, head: int) -> dict:
    """Kernels of one expert, its hidden units in the order of another's."""
    own = {path: value[member] for path, value in kernels.items()}
    if member == head:
        return own
    likeness = 0.0
    for path, value in own.items():
        axis = _hidden_axis(path)
        if axis is not None:
            ours, theirs = (
                np.moveaxis(v, axis, 0).reshape(v.shape[axis], -1)
                for v in (value, kernels[path][head])
            )
            likeness = likeness + theirs @ ours.T  # [F, F]
    _, order = linear_sum_assignment(likeness, maximize=True)
    for path, value in own.items():
        if _hidden_axis(path) is not None:
            own[path] = np.take(value, order, axis=_hidden_axis(path))
    return own


def _hidden_axis(path: str) -> int | None:
    """Of a kernel or bias of one expert; the bias of the output has none."""
    if path.endswith("/wo/bias"):
        return None
    return 0 if path.endswith("/wo/kernel") else 1


def _smaller(
    model: Any, num_experts: int | None, kept: dict, expert: Callable
) -> Any:
    """The new model; `expert` makes the new kernels of a layer of its old."""
    backbone = _backbone(model)
    config = backbone.get_config()
    del config["name"]
    if num_experts is None:
        config |= _without_sparse_layers(backbone, config)
    else:
        config["num_experts"] = num_experts
    smaller = type(backbone).from_config(config)
    values = {}
    for name in kept:
        prefix = f"{name}{_EXPERTS}"
        values |= expert(
            name,
            {
                v.path: ops.convert_to_numpy(ops.cast(v, "float32"))
                for v in variables(backbone)
                if v.path.startswith(prefix)
            },
        )
    if num_experts is None:
        values = {
            path.replace(_EXPERTS, "/feed_forward/"): value
            for path, value in values.items()
        }
    _fill(smaller, backbone, values, kept)
    if model is backbone:
        return smaller
    return type(model)(smaller, model.preprocessor)


def _without_sparse_layers(backbone: Any, config: dict) -> dict:
    for own, dense in (
        ("expert_intermediate_dim", "intermediate_dim"),
        ("expert_activation", "activation"),
    ):
        if config.get(own) not in (None, config[dense]):
            raise ValueError(
                f"{own} must be the {dense} of the dense layers, whose config "
                f"the new layers share; received {config[own]!r} and "
                f"{config[dense]!r}."
            )
    steps = [name for name in config if name.endswith("sparse_step")]
    return dict.fromkeys(steps, 0)


def _fill(smaller: Any, backbone: Any, values: dict, kept: dict) -> None:
    sources = {v.path: v for v in variables(backbone)}
    for target in variables(smaller):
        value = values.get(target.path)
        if value is None:
            value = ops.convert_to_numpy(
                ops.cast(sources[target.path], "float32")
            )
            if value.shape != tuple(target.shape):
                # A router's, whose last axis is the experts'.
                value = value[..., kept[target.path.partition(_SPARSE)[0]]]
        target.assign(np.array(value, dtype="float32"))
