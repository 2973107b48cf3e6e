"""Which operations the time of one call of a layer goes into.

`benchmark.py --what=profile` calls it. Each side runs in a process of its own,
one after the other.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from keras_switch_train import flags, layer_speed, layer_worker, workers

SIDES = ("ours", *layer_speed.RIVALS)
# Operations that have a row of their own.
_ROWS = 12


def profile(
    cell: layer_speed.Cell,
    sides: Sequence[str],
    kinds: Sequence[str],
    backend: str,
    times: int,
    retain_heap: bool,
) -> list[dict[str, Any]]:
    """Traces a layer on the work of `layer_speed.compare`.

    Args:
        cell: What to compute.
        sides: Names of `SIDES`.
        kinds: Of `layer_speed.KINDS`. A side has no rows for those that it
            cannot do.
        backend: What Keras computes with.
        times: Calls of each kind that are traced.
        retain_heap: Whether freed memory is kept.

    Returns:
        For each side and kind of call a row for each of the 12 operations that
        take longest, one for the others, and their total.

    Raises:
        UsageError: if there is no side, an unknown one, or one that can do
            none of the kinds.
        RuntimeError: if a process ended, or its trace shows no operation.
    """
    if not sides or set(sides) - set(SIDES):
        raise flags.UsageError(
            f"--sides must name some of {', '.join(SIDES)}; received "
            f"{','.join(sides) or 'nothing'}."
        )
    able = {side: _able(side, kinds, cell) for side in sides}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        layer_speed.write(cell, folder)
        for side, its_kinds in able.items():
            tracer = "torch" if side == "transformers" else backend
            worker = workers.Worker(
                "profile_worker", (side, folder, tracer), backend, retain_heap
            )
            try:
                for kind in its_kinds:
                    found = worker.ask(do=kind, times=times)
                    head = _head(cell, side, kind, tracer)
                    rows += table({**head, **_of_call(found)}, found)
            finally:
                worker.close()
    return rows


def _able(side, kinds, cell):
    """Of the kinds those that a side can do."""
    its_kinds = layer_worker.kinds(side, cell._asdict())
    able = [kind for kind in its_kinds if kind in kinds]
    if not able:
        raise flags.UsageError(
            f"--calls must name something that {side} can do with these flags, "
            f"{' or '.join(its_kinds) or 'which is nothing'}; received "
            f"{','.join(kinds) or 'nothing'}."
        )
    return able


def _head(cell, side, kind, tracer):
    factor = cell.capacity_factor
    if kind == "forward":
        factor = cell.eval_capacity_factor
    return {
        "profiler": tracer,
        "experts": cell.experts,
        "tokens": cell.tokens,
        "d_ff": cell.intermediate_dim,
        "dtype": cell.dtype,
        "kind": kind,
        "capacity": "dropless" if factor is None else factor,
        "side": side,
    }


def _of_call(found):
    return {
        name: float(f"{found[name]:.4g}")
        for name in ("ms", "traced ms", "cpu ms")
    }


def table(head: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one kind of call of one side.

    Args:
        head: Columns that are the same in each.
        found: Has the `operations` of `profile_trace.profile`.

    Returns:
        At most 12 operations, the others if there are more, and the total;
        there `where` tells the shares of groups.
    """
    operations = found["operations"]
    shown, rest = operations[:_ROWS], operations[_ROWS:]
    if rest:
        shown = [*shown, ["other", f"{len(rest)} operations", "", *_sum(rest)]]
    whole = _sum(operations)
    total = ["total", "", _shares(operations, whole[0]), *whole]
    return [
        {
            **head,
            "group": group,
            "operation": name,
            "where": where,
            "wall ms": float(f"{wall:.4g}"),
            "share, %": round(100 * wall / whole[0], 1),
            "thread ms": float(f"{thread:.4g}"),
            "count": round(count, 1),
        }
        for group, name, where, wall, thread, count in (*shown, total)
    ]


def _sum(operations):
    """[wall ms, thread ms, count] of some."""
    return [sum(operation[i] for operation in operations) for i in (3, 4, 5)]


def _shares(operations, whole):
    """The groups that take longest: product 69 %, copy 10 %, ..."""
    groups = {}
    for group, _, _, wall, *_ in operations:
        groups[group] = groups.get(group, 0.0) + wall
    longest = sorted(groups.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{name} {100 * ms / whole:.0f} %" for name, ms in longest)
