"""One side of `benchmark.py --what=step`, in a process of its own.

Arguments: the side, and a folder that `write` has filled. Answers `do="work"`
(the first step, and what it did), `do="step"` (the seconds of one step) and
`do="end"` (a last step: the loss before it, and the peak of memory).
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_switch_train import cores, workers

_LEARNING_RATE = 1e-3
_UNLIMITED = 1 << 20
_LENGTHS = {"encoder": "input", "decoder": "target"}


def write(shape: dict[str, Any], folder: str) -> None:
    """Writes a model, a batch, and the number of slots of an expert.

    Args:
        shape: The fields of `step_speed.Shape`.
        folder: Gets `model/`, `batch.npz` and `work.json`.
    """
    from keras_switch.layers import capacity
    from keras_switch_train import generate_speed

    rng = np.random.default_rng(0)
    size, vocabulary = shape["batch"], shape["vocabulary"]
    batch = {
        "input": rng.integers(3, vocabulary, (size, shape["input"])),
        "labels": rng.integers(3, vocabulary, (size, shape["target"])),
    }
    batch["target"] = np.pad(batch["labels"], ((0, 0), (1, 0)))[:, :-1]
    model = generate_speed.make_model(
        0,
        vocab_size=vocabulary,
        d_model=shape["hidden_dim"],
        d_ff=shape["intermediate_dim"],
        num_layers=shape["layers"],
        num_experts=shape["experts"],
        dropout_rate=0.0,
        router_jitter_noise=0.0,
        router_aux_loss_coef=0.0,
        router_z_loss_coef=0.0,
    )
    _balance(model, batch)
    model.save_pretrained(os.path.join(folder, "model"))
    np.savez(os.path.join(folder, "batch.npz"), **batch)
    factor = shape["capacity_factor"]
    slots = {
        stack: _UNLIMITED
        if factor is None
        else capacity.slots_of(
            shape[length], shape["experts"], factor, at_least=4
        )
        for stack, length in _LENGTHS.items()
    }
    with open(os.path.join(folder, "work.json"), "w") as file:
        json.dump({"capacity_factor": factor, "slots": slots}, file)


def _balance(model, batch):
    """Takes out of the routers what they say of the mean token.

    Tokens of a random model have a large mean, by which nearly all would go to
    a few experts.
    """
    import torch

    def even_out(router, inputs):
        mean = inputs[0].mean((0, 1))  # [D]
        kernel = router.classifier.weight  # [E, D]
        kernel -= torch.outer(kernel @ mean, mean) / (mean @ mean)

    hooks = [
        router.register_forward_pre_hook(even_out)
        for router in _routers(model).values()
    ]
    with torch.no_grad():
        model(**_torch_batch(batch))
    for hook in hooks:
        hook.remove()


def _routers(model):
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Router")
    }


def _torch_batch(batch):
    import torch

    tensors = {name: torch.tensor(ids).long() for name, ids in batch.items()}
    return {
        "input_ids": tensors["input"],
        "attention_mask": torch.ones_like(tensors["input"]),
        "decoder_input_ids": tensors["target"],
        "decoder_attention_mask": torch.ones_like(tensors["target"]),
        "labels": tensors["labels"],
        "use_cache": False,
    }


def make(side: str, folder: str) -> Callable[..., dict[str, Any]]:
    """Loads a side; returns the function that answers requests."""
    with open(os.path.join(folder, "work.json")) as file:
        work = json.load(file)
    batch = dict(np.load(os.path.join(folder, "batch.npz")))
    load = {"ours": _ours, "transformers": _transformers}[side]
    step, inspect = load(os.path.join(folder, "model"), work, batch)

    def answer(do):
        if do == "work":
            return inspect()
        if do == "end":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            loss = inspect()["first loss"]
            return {"last loss": loss, "peak GB": round(peak * 1024 / 1e9, 2)}
        start = time.perf_counter()
        step()
        return {"seconds": time.perf_counter() - start}

    return answer


def _ours(folder, work, batch):
    """`train_on_batch`, which runs the compiled step of `fit`."""
    import keras

    import keras_switch
    from keras_switch_train import measure

    measure.use_all_cores()
    factor = work["capacity_factor"]
    capacity = {"dispatch": "dropless"}
    if factor is not None:
        capacity = {"capacity_factor": factor}
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(
        folder, preprocessor=None, **capacity
    )
    # XLA makes TensorFlow slower on a CPU.
    is_slow = os.environ["KERAS_BACKEND"] == "tensorflow"
    lm.compile(
        keras.optimizers.Adafactor(_LEARNING_RATE),
        jit_compile=False if is_slow else "auto",
    )
    ids = {name: array.astype("int32") for name, array in batch.items()}
    x = {
        "encoder_token_ids": ids["input"],
        "encoder_padding_mask": np.ones_like(ids["input"]),
        "decoder_token_ids": ids["target"],
        "decoder_padding_mask": np.ones_like(ids["target"]),
    }

    def step():
        # Numbers, not arrays: they have been computed.
        return lm.train_on_batch(x, ids["labels"], return_dict=True)

    def inspect():
        lm.reset_metrics()
        logs = step()
        return {
            "first loss": float(logs["loss"]),
            "kept tokens": _kept_of_logs(logs, ids),
            "parameters": sum(
                int(np.prod(v.shape)) for v in lm.trainable_variables
            ),
            "dtype": lm.backbone.compute_dtype,
        }

    return step, inspect


def _kept_of_logs(logs, ids):
    """Tokens that the experts took, by layer."""
    kept = {}
    for name, dropped in logs.items():
        layer, _, statistic = name.partition("/")
        if statistic == "dropped_fraction":
            stack, _, number = layer.partition("_layer_")
            tokens = ids[_LENGTHS[stack]].size
            kept[f"{stack} {number}"] = round(tokens * (1 - float(dropped)))
    return kept


def _transformers(folder, work, batch):
    """A loop as its users write it."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(len(cores.ids()))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).train()  # nosec B615
    routers = _routers(model)
    for name, router in routers.items():
        router.expert_capacity = work["slots"][name.partition(".")[0]]
    parameters = list(model.parameters())
    optimizer = torch.optim.Adafactor(parameters, lr=_LEARNING_RATE)
    inputs = _torch_batch(batch)

    def step():
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    def inspect():
        loss, kept = _with_kept(step, routers)
        return {
            "first loss": loss,
            "kept tokens": kept,
            "parameters": sum(p.numel() for p in parameters),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
        }

    return step, inspect


def _with_kept(step, routers):
    """The loss of a step, and the tokens that the experts took, by layer."""
    kept = {}

    def note(name, mask):
        stack, _, number, *_ = name.split(".")
        kept[f"{stack} {number}"] = int(mask.sum())

    hooks = [
        router.register_forward_hook(
            lambda _, inputs, outputs, name=name: note(name, outputs[0])
        )
        for name, router in routers.items()
    ]
    loss = step()
    for hook in hooks:
        hook.remove()
    return loss, kept


if __name__ == "__main__":
    workers.serve(make, sys.argv[1:])
