"""Greedy generation beside that of `transformers`, on the same weights.

`benchmark.py --what=generate` calls it. Each side runs in a process of its own
and keeps its model there; they are asked in turns.
"""

import statistics
import tempfile
from typing import Any, NamedTuple

import numpy as np

from keras_switch_train import workers

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
        processes = {}
        try:
            for side in sides:
                processes[side] = workers.Worker(
                    "generate_worker", (side, folder), backend, retain_heap
                )
            heaps = {side: each.head for side, each in processes.items()}
            workers.require_same(heaps, ("heap",))
            return [
                row
                for batch in batches
                for row in _rows(processes, shape, batch, repeats)
            ]
        finally:
            for process in processes.values():
                process.close()


def write_model(shape: Shape, folder: str, seed: int = 0) -> None:
    """Writes a random model, with `transformers`."""
    model = make_model(
        seed,
        vocab_size=VOCABULARY,
        d_model=shape.hidden_dim,
        d_ff=shape.intermediate_dim,
        num_layers=shape.layers,
        num_experts=shape.experts,
    )
    model.save_pretrained(folder)


def make_model(seed: int, **config: Any) -> Any:
    """A random model of `transformers`.

    Args:
        seed: Of its weights.
        **config: Of its configuration: `vocab_size`, `d_model`, `d_ff`,
            `num_layers` of each stack, every other one sparse, `num_experts`;
            and what is not to have its default.

    Returns:
        A `SwitchTransformersForConditionalGeneration` that drops no token.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    heads = max(config["d_model"] // 64, 1)
    layers = config["num_layers"]
    return transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(
            d_kv=config["d_model"] // heads,
            num_heads=heads,
            num_decoder_layers=layers,
            num_sparse_encoder_layers=layers // 2,
            num_sparse_decoder_layers=layers // 2,
            expert_capacity=1 << 20,
            decoder_start_token_id=0,
            **config,
        )
    )


def bytes_of_step(shape: Shape) -> int:
    """The float32 weights that a step at batch 1 must read, in bytes.

    A decoder layer's attention to itself (4 matrices) and to the encoder's
    output (2: keys and values are cached), its feed-forward or one expert, and
    the logits.
    """
    width = shape.hidden_dim
    layer = 6 * width**2 + 2 * width * shape.intermediate_dim
    return 4 * (shape.layers * layer + VOCABULARY * width)


def _rows(processes, shape, batch, repeats):
    batch_size, length = batch
    rng = np.random.default_rng(batch_size)
    request = {
        "encoder_token_ids": rng.integers(
            3, VOCABULARY, (batch_size, length)
        ).tolist(),
        "new_tokens": shape.new_tokens,
    }
    answers = {side: each.ask(**request) for side, each in processes.items()}
    _check_same(answers)
    one_token = {**request, "new_tokens": 1}
    for process in processes.values():
        process.ask(**one_token)  # which compiles
    seconds = workers.in_turns(processes, repeats, **request)
    first = workers.in_turns(processes, repeats, **one_token)
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
