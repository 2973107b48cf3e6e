"""Time and memory of loading a full-size checkpoint of `transformers`.

`benchmark.py --what=convert` calls it. The model is written by one process and
loaded by another, whose peak of resident memory is therefore the loader's.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

# config.json of google/switch-base-8, as far as it makes the shape.
BASE_8 = {
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_sparse_encoder_layers": 6,
    "num_sparse_decoder_layers": 6,
    "num_experts": 8,
    "decoder_start_token_id": 0,
}


def measure(backend: str) -> list[dict[str, Any]]:
    """Writes, loads and runs switch_base_8 with random weights.

    Args:
        backend: What Keras computes with.

    Returns:
        A row with the parameters, the size of the files, seconds, and
        gigabytes of resident memory: at its peak, and before the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run("write", folder, backend)
        files = sum(
            os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)
        )
        row = json.loads(_run("load", folder, backend))
    return [{**row, "files GB": round(files / 1e9, 2)}]


def _run(step, folder, backend):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_switch_train.conversion_cost",
            step,
            folder,
        ],
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout.strip().rpartition("\n")[2]


def write(folder: str) -> None:
    """Writes the model, with `transformers`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(**BASE_8)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size="1GB")


def load(folder: str) -> None:
    """Loads it and generates; prints what that took, as JSON."""
    import numpy as np

    import keras_switch

    before, start = _resident(), time.perf_counter()
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(folder, preprocessor=None)
    loaded = time.perf_counter() - start
    peak = _resident()
    x = {
        "encoder_token_ids": np.full((1, 32), 100, "int32"),
        "encoder_padding_mask": np.ones((1, 32), "int32"),
        "decoder_token_ids": np.zeros((1, 17), "int32"),
        "decoder_padding_mask": np.eye(1, 17, dtype="int32"),
    }
    lm.compile(sampler="greedy")
    seconds = []
    for _ in range(2):  # the first one compiles
        start = time.perf_counter()
        lm.generate(x, stop_token_ids=None)
        seconds.append(time.perf_counter() - start)
    row = {
        "parameters": keras_switch.count_parameters(lm.backbone)["total"],
        "load s": round(loaded, 1),
        "16 tokens, s": round(seconds[1], 2),
        "first time, s": round(seconds[0], 1),
        "before GB": round(before, 2),
        "peak loading GB": round(peak, 2),
        "peak generating GB": round(_resident(), 2),
    }
    print(json.dumps(row))


def _resident():
    """Peak of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    {"write": write, "load": load}[sys.argv[1]](sys.argv[2])
