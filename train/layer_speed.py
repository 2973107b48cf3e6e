"""One SwitchLayer beside its rivals, on the same work.

`benchmark.py --what=layer` calls it. Each side runs in a process of its own;
they are asked in turns.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_switch_train import flags, workers

RIVALS = ("dense", "transformers", "keras_hub", "einsum")
KINDS = ("forward", "training")
ROW = 512  # tokens of a row, which share a capacity
# Norm of the difference over the norm. A token that went to another expert is
# 1.5e-2 of 4,096; a hidden value next to 0, which rounding turns on for one
# side, about 1e-4. In bfloat16 every product is rounded to 3 digits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}
# Tokens whose two best experts are closer go to either, by rounding.
_MARGIN = 0.02


class Cell(NamedTuple):
    """One entry of the grid."""

    experts: int
    tokens: int
    hidden_dim: int
    intermediate_dim: int
    dtype: str = "float32"
    capacity_factor: float | None = 1.25  # None: dropless
    eval_capacity_factor: float | None = None


def grid(
    experts: Iterable[int],
    tokens: Iterable[int],
    hidden_dim: int,
    intermediate_dim: Iterable[int],
    dtypes: Iterable[str],
    factors: tuple[float | None, float | None],
) -> Iterator[Cell]:
    """Every entry of the grid that the flags of these names ask for.

    Args:
        factors: Of the capacity in training and in evaluation.

    Raises:
        UsageError: if one cannot be measured.
    """
    if factors[0] is None and factors[1] is not None:
        raise flags.UsageError(
            "--evaluation=capacity needs --training=capacity: a layer that "
            "trains without a capacity has none."
        )
    for number in tokens:
        if number > ROW and number % ROW:
            raise flags.UsageError(
                f"--tokens must be at most {ROW} or a multiple of it, the "
                f"tokens of a row; received {number}."
            )
    for dtype in dtypes:
        if dtype not in TOLERANCE:
            raise flags.UsageError(
                f"--dtype must be {' or '.join(TOLERANCE)} for a layer; "
                f"received {dtype}."
            )
    for number, count, inner, dtype in itertools.product(
        experts, tokens, intermediate_dim, dtypes
    ):
        yield Cell(number, count, hidden_dim, inner, dtype, *factors)


def compare(
    cell: Cell,
    against: list[str],
    backend: str,
    repeats: int,
    retain_heap: bool,
) -> list[dict[str, Any]]:
    """Times a layer, forward in evaluation and forward + backward in training.

    Training computes the gradients of the tokens and of every weight, and
    updates nothing; auxiliary losses are left out. Rows of at most 512 tokens
    share a capacity. Where there is one, tokens are drawn so that none is over
    it, as routers are trained to send them: every side works on all tokens,
    also those that have no capacity. Dropless they go where they will.

    Args:
        cell: What to compute.
        against: Names of `RIVALS`. `transformers` and `einsum` have our
            weights; `dense` and `keras_hub` equal active FLOPs. `keras_hub`
            has no row for training, and `einsum` none without a capacity,
            where it is the same code as ours.
        backend: What Keras computes with.
        repeats: Calls of each side that are timed.
        retain_heap: Whether freed memory is kept: on all sides, or none.

    Returns:
        A row for each rival and kind of call.

    Raises:
        RuntimeError: if two sides did not do the same work, or sides with the
            same weights gave different results.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(cell, folder)
        sides = {}
        try:
            for side in ("ours", *against):
                arguments = ("layer_worker", (side, folder))
                sides[side] = workers.Worker(*arguments, backend, retain_heap)
            records = {
                side: {**worker.ask(do="work"), **worker.head}
                for side, worker in sides.items()
            }
            check(records, folder, cell.dtype)
            return [
                row
                for kind in KINDS
                for row in _rows(cell, backend, kind, sides, records, repeats)
            ]
        finally:
            for worker in sides.values():
                worker.close()


def write(cell: Cell, folder: str) -> None:
    """The weights and the tokens, and what to do with them, for the sides."""
    rng = np.random.default_rng(0)
    row = min(ROW, cell.tokens)
    width, inner = cell.hidden_dim, cell.intermediate_dim

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, "float32") * np.float32(scale)

    capacities = {
        "capacity": _capacity(cell, row, cell.capacity_factor),
        "eval_capacity": _capacity(cell, row, cell.eval_capacity_factor),
    }
    router = normal(width, cell.experts, scale=(0.1 / width) ** 0.5)
    x = {}
    for kind, room in zip(KINDS, reversed(capacities.values()), strict=True):
        x[kind] = rows = normal(cell.tokens // row, row, width)
        while (
            unfit := _undecided(rows, router) | _dropped(rows, router, room)
        ).any():
            rows[unfit] = normal(int(unfit.sum()), width)
    np.savez(
        os.path.join(folder, "data.npz"),
        **x,
        dy=normal(*rows.shape),
        router=router,
        wi=normal(cell.experts, width, inner, scale=width**-0.5),
        wo=normal(cell.experts, inner, width, scale=inner**-0.5),
    )
    with open(os.path.join(folder, "work.json"), "w") as file:
        json.dump({**cell._asdict(), **capacities}, file)


def _undecided(x, router):
    """Which tokens rounding might send elsewhere, on one side only."""
    if router.shape[1] == 1:
        return np.zeros(x.shape[:2], bool)
    best = np.partition(x @ router, -2, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0] < _MARGIN


def _dropped(x, router, room):
    """Which tokens find their expert full, where it has a bound."""
    if room is None:
        return np.zeros(x.shape[:2], bool)
    choice = np.argmax(x @ router, axis=-1)[..., None]
    wants = choice == np.arange(router.shape[1])  # [rows, row, E]
    return ((wants.cumsum(1) > room) & wants).any(-1)


def _capacity(cell, row, factor):
    from keras_switch.layers import capacity

    if factor is None:
        return None
    return capacity.slots_of(row, cell.experts, factor, at_least=4)


def check(records: dict[str, dict[str, Any]], folder: str, dtype: str) -> None:
    """Refuses sides that cannot be compared.

    Args:
        records: By side: what it said of its work. The first one is ours.
        folder: Where the sides that have our weights left their results.
        dtype: Of the computation.

    Raises:
        RuntimeError: if work or results differ.
    """
    workers.require_same(records, ("tokens", "dtype", "heap"))
    # KerasHub's width is rounded.
    workers.require_same(records, ("FLOPs of a kept token",), 1e-3)
    for kind in KINDS:
        kept = {side: r["kept"] for side, r in records.items()}
        able = {side: kinds for side, kinds in kept.items() if kind in kinds}
        workers.require_same(
            {s: {"kept tokens": k[kind]} for s, k in able.items()},
            ("kept tokens",),
        )
    ours = np.load(os.path.join(folder, "ours.npz"))
    for side in {"transformers", "einsum"} & set(records):
        theirs = np.load(os.path.join(folder, f"{side}.npz"))
        for name in theirs.files:
            require_close(name, side, ours[name], theirs[name], dtype)


def require_close(
    name: str, side: str, ours: np.ndarray, theirs: np.ndarray, dtype: str
) -> None:
    """Refuses results that differ.

    Raises:
        RuntimeError: if the norm of the difference is over `TOLERANCE` of the
            norm.
    """
    difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    if not difference <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"{name} must agree to {TOLERANCE[dtype]} of its norm in {dtype}; "
            f"ours differs from that of {side} by {difference:.2g}."
        )


def _rows(cell, backend, kind, sides, records, repeats):
    able = {s: w for s, w in sides.items() if kind in records[s]["kept"]}
    if len(able) < 2:
        return
    samples = workers.in_turns(able, repeats, do=kind)
    factor = cell.eval_capacity_factor
    if kind == "training":
        factor = cell.capacity_factor
    for rival in list(able)[1:]:
        # Against dense how much slower, against others how much faster.
        names = (rival, "ours") if rival != "dense" else ("ours", rival)
        yield {
            "backend": backend,
            "experts": cell.experts,
            "tokens": cell.tokens,
            "d_ff": cell.intermediate_dim,
            "dtype": cell.dtype,
            "kind": kind,
            "capacity": "dropless" if factor is None else factor,
            **workers.spread("ours", samples["ours"], 1e3, "ms"),
            "against": rival,
            **workers.spread("its", samples[rival], 1e3, "ms"),
            "ratio": " / ".join(names),
            **workers.ratio(*(samples[name] for name in names)),
            "target": _target(cell, backend, kind, rival),
            "work": {
                side: _plain(records[side], kind) for side in ("ours", rival)
            },
        }


def _plain(record, kind):
    flops = record["FLOPs of a kept token"] * (3 if kind == "training" else 1)
    kept = record["kept"][kind]
    return {
        "kept tokens": kept,
        "GFLOP": float(f"{kept * flops / 1e9:.4g}"),
        "dtype": record["dtype"],
        "heap": record["heap"],
    }


def _target(cell, backend, kind, rival):
    """What a row is to reach, in float32; `None` if nothing was set."""
    factor = cell.capacity_factor
    if kind == "forward":
        factor = cell.eval_capacity_factor
    default = factor == (1.25 if kind == "training" else None)
    if cell.dtype != "float32" or not default:
        return None
    if rival == "dense" and cell.tokens >= 128 * cell.experts:
        return "<= 1.1" if kind == "forward" else "<= 1.4"
    if rival == "transformers" and backend != "torch":
        return ">= 1.8"
    if rival == "transformers" and kind == "training":
        return ">= 1.0"
    if rival == "keras_hub":
        return {8: ">= 5.0", 32: ">= 15.0"}.get(cell.experts)
    return None
