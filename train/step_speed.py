"""A training step beside that of `transformers`, on the same work.

`benchmark.py --what=step` calls it. Each side trains in a process of its own;
they are asked in turns.
"""

import tempfile
from typing import Any, NamedTuple

from keras_switch_train import workers

_LOSS = 1e-3  # nats; largest difference of the first losses
_SAME = ("kept tokens", "parameters", "dtype", "heap")


class Shape(NamedTuple):
    """A model, and its batch."""

    experts: int = 8
    hidden_dim: int = 768
    intermediate_dim: int = 3072
    layers: int = 4  # of each stack, every other one sparse
    vocabulary: int = 32128
    batch: int = 8
    input: int = 256
    target: int = 64
    capacity_factor: float | None = 1.25  # None: dropless


def compare(
    shape: Shape, backend: str, repeats: int, retain_heap: bool
) -> list[dict[str, Any]]:
    """Times steps of training: forward, backward, and Adafactor.

    Both sides start from one checkpoint and see one batch, again and again,
    without padding. Dropout, jitter and auxiliary losses are off on both.
    Tokens of a sequence share a capacity, and an expert has the same number of
    slots on both sides: the factor times its share of the encoder's tokens,
    and of the decoder's; or no side has a limit. The routers are such that
    their loads are about even, as after training with a balance loss.

    Ours is compiled and trained as by `fit`, with its metrics (accuracy, and
    what the routers did), and `keras.optimizers.Adafactor`; the other is a
    loop with `torch.optim.Adafactor`, and computes no metric.

    Args:
        shape: The model and its batch.
        backend: What Keras computes with.
        repeats: Steps of each side that are timed, after two that are not.
        retain_heap: Whether freed memory is kept: on both sides, or neither.

    Returns:
        One row.

    Raises:
        RuntimeError: if the sides did not do the same work: the first losses
            must agree to 0.001 nats, and the tokens that the experts took must
            be the same in number in every layer; or if one did not learn.
    """
    from keras_switch_train import step_worker

    with tempfile.TemporaryDirectory() as folder:
        step_worker.write(shape._asdict(), folder)
        sides = {}
        try:
            for side in ("ours", "transformers"):
                arguments = ("step_worker", (side, folder))
                sides[side] = workers.Worker(*arguments, backend, retain_heap)
            records = {
                side: {**worker.ask(do="work"), **worker.head}
                for side, worker in sides.items()
            }
            check(records)
            # A second step may compile, or make room, once more.
            workers.in_turns(sides, 1, do="step")
            samples = workers.in_turns(sides, repeats, do="step")
            for side, worker in sides.items():
                records[side] |= worker.ask(do="end")
            check_learnt(records)
            return [_row(shape, backend, samples, records)]
        finally:
            for worker in sides.values():
                worker.close()


def check(records: dict[str, dict[str, Any]]) -> None:
    """Refuses sides whose first step was not the same.

    Args:
        records: By side: what it said of its first step.

    Raises:
        RuntimeError: if work or losses differ.
    """
    workers.require_same(records, _SAME)
    ours, theirs = (record["first loss"] for record in records.values())
    if not abs(ours - theirs) <= _LOSS:
        raise RuntimeError(
            f"The first losses must agree to {_LOSS} nats, from the same "
            f"weights; they are {ours:.5f} (ours) and {theirs:.5f}."
        )


def check_learnt(records: dict[str, dict[str, Any]]) -> None:
    """Refuses a side whose loss has not fallen: it did not train.

    Raises:
        RuntimeError: with its losses.
    """
    for side, record in records.items():
        first, last = record["first loss"], record["last loss"]
        if not last < first:
            raise RuntimeError(
                "The loss on the one batch must fall; that of "
                f"{side} went from {first:.5f} to {last:.5f}."
            )


def _row(shape, backend, samples, records):
    kept = records["ours"]["kept tokens"]
    lengths = {"encoder": shape.input, "decoder": shape.target}
    routed = sum(shape.batch * lengths[name.split()[0]] for name in kept)
    factor = shape.capacity_factor
    is_default = shape._replace(capacity_factor=1.25) == Shape()
    return {
        "backend": backend,
        "experts": shape.experts,
        "d_model": shape.hidden_dim,
        "d_ff": shape.intermediate_dim,
        "batch": f"{shape.batch} x {shape.input}/{shape.target}",
        "dtype": records["ours"]["dtype"],
        "capacity": "dropless" if factor is None else factor,
        "dropped %": round(100 * (1 - sum(kept.values()) / routed), 1),
        **workers.spread("ours", samples["ours"], 1, "s"),
        "against": "transformers",
        **workers.spread("its", samples["transformers"], 1, "s"),
        "ratio": "transformers / ours",
        **workers.ratio(samples["transformers"], samples["ours"]),
        "target": ">= 1.5" if is_default and backend != "torch" else None,
        "work": records,
    }
