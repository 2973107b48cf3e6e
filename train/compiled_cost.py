"""The library's parts beside other ways to compute them, in one process.

`benchmark.py --what=plan` and `--what=flops` call it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def plan(
    tokens: int, numbers: Sequence[int], repeats: int
) -> list[dict[str, Any]]:
    """Milliseconds and megabytes of the places of tokens in queues.

    Args:
        tokens: Of one group.
        numbers: Numbers of experts; with one more, times `tokens`, the places
            must stay below 2**31.
        repeats: Calls that are timed.

    Returns:
        A row for each number and method.

    Raises:
        RuntimeError: if the methods disagree.
    """
    from keras import ops

    from keras_switch_train import measure

    rows = []
    for experts in numbers:
        draw = np.random.default_rng(0).integers(0, experts, (1, tokens))
        index = ops.convert_to_tensor(draw, "int32")
        functions = _methods(experts)
        compiled = {n: measure.compiled(f) for n, f in functions.items()}
        calls = {
            name: lambda f=function, i=index: f(i)
            for name, function in compiled.items()
        }
        results = [ops.convert_to_numpy(call()) for call in calls.values()]
        if not (results[0] == results[1]).all():
            raise RuntimeError("The two methods must agree; they differ.")
        times = measure.interleaved(calls, repeats)
        for name, function in functions.items():
            row = {"tokens": tokens, "experts": experts, "method": name}
            row["ms"] = round(1e3 * times[name].median, 3)
            row["best ms"] = round(1e3 * times[name].best, 3)
            price = measure.cost(function, index)
            if price:
                row["temporary MB"] = round(price["temporary_bytes"] / 1e6, 1)
            rows.append(row)
    return rows


def _methods(experts):
    from keras import ops

    from keras_switch.ops.indexing import queue_positions

    def one_hot(index):
        hot = ops.one_hot(index, experts, dtype="int32")  # [1, M, E]
        return ops.sum(ops.cumsum(hot, axis=1) * hot, axis=-1) - 1

    return {
        "packed sort": lambda index: queue_positions(index, experts),
        "one-hot cumsum": one_hot,
    }


def flops(
    tokens: int, width: int, inner: int, numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """FLOPs of a forward pass, as the compiler of JAX counts them.

    Args:
        tokens: Of one group.
        width: Of a token.
        inner: Of an expert, of ours and of KerasHub's Qwen3-MoE block.
        numbers: Numbers of experts.

    Returns:
        A row for each number; growth is against the first one.
    """
    from keras import ops

    from keras_switch import SwitchLayer
    from keras_switch_train import layer_worker, measure

    x = ops.ones((1, tokens, width))
    rows = []
    for experts in numbers:
        layers = {
            "SwitchLayer": SwitchLayer(
                experts, inner, dispatch="gather", eval_capacity_factor=1.25
            ),
            "Qwen3-MoE block": layer_worker.qwen3_moe_block(
                experts, width, inner
            ),
        }
        row = {"experts": experts, "tokens": tokens}
        for name, layer in layers.items():
            layer.build(x.shape)
            call, weights = measure.forward(layer)
            count = measure.cost(call, *weights, x)["flops"]
            row[f"{name}, MFLOP per token"] = round(count / tokens / 1e6, 3)
            first = rows[0] if rows else row
            smallest = first[f"{name}, MFLOP per token"]
            row[f"{name}, growth"] = round(count / tokens / 1e6 / smallest, 2)
        rows.append(row)
    return rows
