"""Greedy generation beside that of `transformers`, on the same weights.

`benchmark.py --what=generate` calls it. Each side runs in a process of its own
and keeps its model there; they are asked in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

VOCABULARY = 32128


class Shape(NamedTuple):
    """A model, and what it is asked for."""

    experts: int
    hidden_dim: int
    intermediate_dim: int
    layers: int = 4  # of each stack, every other one sparse
    new_tokens: int = 32


def compare(
    shape: Shape,
    batches: list[tuple[int, int]],
    backend: str,
    repeats: int,
    retain_heap: bool,
    rival: bool = True,
) -> list[dict[str, Any]]:
    """Times greedy generation.

    Args:
        shape: The model.
        batches: Pairs of a batch size and the length of its inputs.
        backend: What Keras computes with.
        repeats: Calls of each side that are timed, after one that is not.
        retain_heap: Whether freed memory is kept: on both sides, or neither.
        rival: Whether to run `transformers` too.

    Returns:
        A row for each batch and side, with the medians and, where there are
        two sides, `transformers / ours`; at batch 1 also how fast a step read
        the weights, to be set beside what the memory gives.

    Raises:
        RuntimeError: if the two sides generate different tokens: then they
            did not do the same work, and there is no ratio.
    """
    sides = ("ours", "transformers") if rival else ("ours",)
    with tempfile.TemporaryDirectory() as folder:
        write_model(shape, folder)
        workers = {
            side: _Worker(side, folder, backend, retain_heap) for side in sides
        }
        try:
            return [
                row
                for batch in batches
                for row in _rows(workers, shape, batch, repeats)
            ]
        finally:
            for worker in workers.values():
                worker.close()


def write_model(shape: Shape, folder: str, seed: int = 0) -> None:
    """Writes a random model, with `transformers`."""
    import torch
    import transformers

    torch.manual_seed(seed)
    heads = max(shape.hidden_dim // 64, 1)
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCABULARY,
        d_model=shape.hidden_dim,
        d_kv=shape.hidden_dim // heads,
        d_ff=shape.intermediate_dim,
        num_heads=heads,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_sparse_encoder_layers=shape.layers // 2,
        num_sparse_decoder_layers=shape.layers // 2,
        num_experts=shape.experts,
        # Ours drops nothing either.
        expert_capacity=1 << 20,
        decoder_start_token_id=0,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    model.save_pretrained(folder)


def bytes_of_step(shape: Shape) -> int:
    """The float32 weights that a step at batch 1 must read, in bytes.

    A decoder layer's attention to itself (4 matrices) and to the encoder's
    output (2: keys and values are cached), its feed-forward or one expert, and
    the logits.
    """
    width = shape.hidden_dim
    layer = 6 * width**2 + 2 * width * shape.intermediate_dim
    return 4 * (shape.layers * layer + VOCABULARY * width)


def _rows(workers, shape, batch, repeats):
    batch_size, length = batch
    rng = np.random.default_rng(batch_size)
    request = {
        "encoder_token_ids": rng.integers(
            3, VOCABULARY, (batch_size, length)
        ).tolist(),
        "new_tokens": shape.new_tokens,
    }
    answers = {side: worker.ask(request) for side, worker in workers.items()}
    _check_same(answers)
    one_token = {**request, "new_tokens": 1}
    for worker in workers.values():
        worker.ask(one_token)  # which compiles
    seconds = {side: [] for side in workers}
    first = {side: [] for side in workers}
    for _ in range(repeats):
        for side, worker in workers.items():
            seconds[side].append(worker.ask(request)["seconds"])
            first[side].append(worker.ask(one_token)["seconds"])
    medians = {side: statistics.median(s) for side, s in seconds.items()}
    tokens = batch_size * shape.new_tokens
    rows = []
    for side, median in medians.items():
        until_first = statistics.median(first[side])
        a_token = (median - until_first) / (shape.new_tokens - 1)
        row = {
            "side": side,
            "experts": shape.experts,
            "batch": batch_size,
            "input": length,
            "tokens/s": round(tokens / median, 1),
            "s": round(median, 3),
            "best s": round(min(seconds[side]), 3),
            "worst s": round(max(seconds[side]), 3),
            "first token s": round(until_first, 3),
            "ms a token": round(1e3 * a_token, 2),
        }
        rate = bytes_of_step(shape) / a_token / 1e9
        row["weights GB/s"] = round(rate, 1) if batch_size == 1 else None
        if len(medians) > 1:
            row["times as fast"] = round(medians["transformers"] / median, 2)
        rows.append(row)
    return rows


def _check_same(answers):
    ids = [answer["token_ids"] for answer in answers.values()]
    if any(other != ids[0] for other in ids):
        raise RuntimeError(
            "The two sides must generate the same tokens to be compared; they "
            "generated different ones."
        )


class _Worker:
    """A process that holds one side's model."""

    def __init__(self, side, folder, backend, retain_heap):
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "keras_switch_train.generate_worker",
                side,
                folder,
                "retain" if retain_heap else "leave",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
        )
        self._side = side
        self._answer()

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"The process of {self._side} must answer; it ended with exit "
                f"code {self._process.wait()}."
            )
        return json.loads(line)

    def close(self):
        self._process.stdin.close()
        self._process.wait()
