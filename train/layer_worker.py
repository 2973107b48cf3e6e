"""One side of `benchmark.py --what=layer`, in a process of its own.

Arguments: the side, and a folder with `data.npz` and `work.json`, which
`layer_speed` has written. Answers `do="work"` (computes once, writes the
results beside the data, says what it did) and `do="forward"` or
`do="training"` (the seconds of one call).
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_switch_train import cores, workers

_UNLIMITED = 1 << 30


def make(side: str, folder: str) -> Callable[..., dict[str, Any]]:
    """Loads a side; returns the function that answers requests."""
    calls, describe = load(side, folder)

    def answer(do):
        if do == "work":
            results, kept = {}, {}
            for kind, call in calls.items():
                found, kept[kind] = call(True)
                for name, array in found.items():
                    results[f"{kind} {name}"] = array
            np.savez(os.path.join(folder, f"{side}.npz"), **results)
            return {**describe(), "kept": kept}
        calls[do]()  # what the other sides put out of the caches
        start = time.perf_counter()
        calls[do]()
        return {"seconds": time.perf_counter() - start}

    return answer


def load(
    side: str, folder: str
) -> tuple[dict[str, Callable], Callable[[], dict[str, Any]]]:
    """A side with the data of `folder`.

    Returns:
        By kind, those of `kinds`: the call, which waits for what it computes;
        with `True` it returns the results to compare, and the tokens it kept.
        And a function that tells of its work.
    """
    with open(os.path.join(folder, "work.json")) as file:
        work = json.load(file)
    make = _transformers if side == "transformers" else _keras
    with np.load(os.path.join(folder, "data.npz")) as data:
        return make(side, work, data)


def kinds(side: str, work: dict[str, Any]) -> tuple[str, ...]:
    """The calls that a side can do.

    Args:
        side: Its name.
        work: Has `capacity_factor` and `eval_capacity_factor`.
    """
    if side == "keras_hub":
        return ("forward",)
    factors = {
        "forward": work["eval_capacity_factor"],
        "training": work["capacity_factor"],
    }
    if side != "einsum":
        return tuple(factors)
    # Dropless it would be the same as ours.
    return tuple(k for k, factor in factors.items() if factor is not None)


def _keras(side, work, data):
    """Ours, or KerasHub's block, or the dense feed-forward."""
    from keras import ops

    from keras_switch_train import measure

    measure.use_all_cores()
    layer, kernels = _layers()[side](work)
    forward, training, dy = (
        ops.cast(data[name], work["dtype"])
        for name in ("forward", "training", "dy")
    )
    layer.build(dy.shape)
    kernels = kernels(layer)
    for name, kernel in kernels.items():
        kernel.assign(data[name])
    functions = {
        "forward": measure.evaluation(layer, forward),
        "training": measure.training(layer, training, dy),
    }
    names = {id(kernel): name for name, kernel in kernels.items()}
    names = [names.get(id(v)) for v in layer.trainable_variables]
    calls = {
        kind: lambda fetch=False, run=functions[kind]: _fetched(
            run(), layer, names, fetch
        )
        for kind in kinds(side, work)
    }
    return calls, lambda: _describe_keras(layer, dy)


def _fetched(results, layer, names, fetch):
    """What to compare of a call, and the tokens it kept, if it is asked for."""
    if not fetch:
        return None
    from keras import ops

    y, x_gradient, gradients = results
    kept = y.shape[0] * y.shape[1]
    if hasattr(layer, "routing_stats"):
        dropped = ops.convert_to_numpy(layer.routing_stats.value)[0]
        kept = round(kept * (1 - float(dropped)))
    found = {"y": y, "gradient of x": x_gradient}
    for name, gradient in zip(names, gradients or (), strict=False):
        if name is not None:
            # Of a kernel of all experts, which is large, sums.
            rank = len(gradient.shape)
            gradient = ops.sum(gradient, -1) if rank == 3 else gradient
            found[f"gradient of {name}"] = gradient
    return {
        name: ops.convert_to_numpy(ops.cast(value, "float32"))
        for name, value in found.items()
        if value is not None
    }, kept


def _describe_keras(layer, dy):
    # A kernel of three axes is that of all experts; a token meets one.
    flops = sum(
        2 * int(np.prod(v.shape[-2:]))
        for v in layer.trainable_variables
        if len(v.shape) == 3 or not hasattr(layer, "num_experts")
    )
    return {
        "tokens": dy.shape[0] * dy.shape[1],
        "FLOPs of a kept token": flops,
        "dtype": layer.compute_dtype,
    }


def _layers():
    import keras_switch
    from keras_switch.layers import FeedForward

    def switch(work, dispatch):
        dispatch = dispatch if work["capacity_factor"] else "dropless"
        layer = keras_switch.SwitchLayer(
            work["experts"],
            work["intermediate_dim"],
            # Noise would route other tokens on every side, and the others
            # compute no auxiliary loss.
            router=keras_switch.SwitchRouter(
                exploration="argmax", load_balancing_loss_weight=0.0
            ),
            dispatch=dispatch,
            capacity_factor=work["capacity_factor"] or 1.0,
            eval_capacity_factor=work["eval_capacity_factor"],
            dtype=work["dtype"],
        )
        return layer, lambda layer: {
            "router": layer.router.kernel,
            "wi": layer.experts._wi[0].kernel,
            "wo": layer.experts.wo.kernel,
        }

    def dense(work):
        layer = FeedForward(work["intermediate_dim"], dtype=work["dtype"])
        return layer, lambda layer: {}

    def block(work):
        layer = qwen3_moe_block(
            work["experts"],
            work["hidden_dim"],
            # Of three matrices instead of two.
            round(work["intermediate_dim"] * 2 / 3),
            work["dtype"],
        )
        return layer, lambda layer: {}

    return {
        "ours": lambda work: switch(work, "gather"),
        "einsum": lambda work: switch(work, "einsum"),
        "dense": dense,
        "keras_hub": block,
    }


def qwen3_moe_block(
    experts: int, hidden_dim: int, intermediate_dim: int, dtype: str = "float32"
) -> Any:
    """KerasHub's block, found in a small public model.

    Args:
        experts: Their number.
        hidden_dim: Width of a token.
        intermediate_dim: Width of an expert, which has three matrices: with
            two thirds of the width of ours a token costs the same FLOPs.
        dtype: A Keras dtype policy.

    Returns:
        A layer, of which a call returns the outputs and the router logits.
    """
    import keras_hub

    backbone = keras_hub.models.Qwen3MoeBackbone(
        vocabulary_size=4,
        num_layers=1,
        num_query_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        hidden_dim=4,
        intermediate_dim=4,
        moe_intermediate_dim=4,
        num_experts=2,
        top_k=1,
        norm_top_k_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    (block,) = (
        layer
        for layer in backbone._flatten_layers()
        if hasattr(layer, "expert_bank")
    )
    return type(block)(
        hidden_dim=hidden_dim,
        moe_intermediate_dim=intermediate_dim,
        num_experts=experts,
        top_k=1,
        norm_top_k_prob=False,
        dtype=dtype,
    )


def _transformers(side, work, data):
    """Its sparse layer, with our weights."""
    del side
    layer = _Transformers(work, data)
    calls = {"forward": layer.forward, "training": layer.training}
    return calls, layer.describe


class _Transformers:
    def __init__(self, work, data):
        import torch

        torch.set_num_threads(len(cores.ids()))
        self._work = work
        dtype = getattr(torch, work["dtype"])
        self._mlp = _sparse_mlp(work, data, dtype)
        self._x, self._training_x, self._dy = (
            torch.tensor(data[name]).to(dtype)
            for name in ("forward", "training", "dy")
        )
        self._training_x.requires_grad_()

    # Dropout and jitter are 0: modes of training and evaluation are the same.
    def forward(self, fetch=False):
        import torch

        self._mlp.router.expert_capacity = (
            self._work["eval_capacity"] or _UNLIMITED
        )
        with torch.no_grad():
            y = self._mlp(self._x)
        return (
            ({"y": y.float().numpy()}, self._kept(self._x)) if fetch else None
        )

    def training(self, fetch=False):
        import torch

        self._mlp.router.expert_capacity = self._work["capacity"] or _UNLIMITED
        parameters = dict(self._mlp.named_parameters())
        y = self._mlp(self._training_x)
        # Experts that no token chose have no gradient.
        x_gradient, *gradients = torch.autograd.grad(
            y,
            [self._training_x, *parameters.values()],
            self._dy,
            allow_unused=True,
        )
        if not fetch:
            return None
        gradients = dict(zip(parameters, gradients, strict=True))
        return {
            "y": y.detach().float().numpy(),
            "gradient of x": x_gradient.float().numpy(),
            **_as_ours(gradients, self._work),
        }, self._kept(self._training_x)

    def _kept(self, x):
        return int(self._mlp.router(x)[0].sum())

    def describe(self):
        expert = self._mlp.experts["expert_0"]
        return {
            "tokens": self._dy.shape[0] * self._dy.shape[1],
            "FLOPs of a kept token": sum(
                2 * p.numel() for p in expert.parameters()
            ),
            "dtype": str(expert.wi.weight.dtype).removeprefix("torch."),
        }


def _as_ours(gradients, work):
    """Gradients of its parameters in the shape of `_fetched`."""
    router = gradients["router.classifier.weight"]
    result = {"gradient of router": router.T.float().numpy()}
    for name, width in (("wi", "hidden_dim"), ("wo", "intermediate_dim")):
        rows = np.zeros((work["experts"], work[width]), "float32")
        for i in range(len(rows)):
            gradient = gradients[f"experts.expert_{i}.{name}.weight"]
            if gradient is not None:
                rows[i] = gradient.float().sum(0).numpy()
        result[f"gradient of {name}"] = rows
    return result


def _sparse_mlp(work, data, dtype):
    import torch
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers import (
        modeling_switch_transformers as modeling,
    )

    config = SwitchTransformersConfig(
        d_model=work["hidden_dim"],
        d_ff=work["intermediate_dim"],
        num_experts=work["experts"],
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    # The router is in float32 on every side.
    state = {"router.classifier.weight": torch.tensor(data["router"].T)}
    for name in ("wi", "wo"):
        for i, kernel in enumerate(data[name]):
            kernel = torch.tensor(kernel).T.contiguous().to(dtype)
            state[f"experts.expert_{i}.{name}.weight"] = kernel
    with torch.device("meta"):  # no weights that are thrown away
        mlp = modeling.SwitchTransformersSparseMLP(config)
    mlp.load_state_dict(state, assign=True)
    return mlp


if __name__ == "__main__":
    workers.serve(make, sys.argv[1:])
