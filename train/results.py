"""Rows of figures as a table, a JSON file and a plot."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table; what is the same in all of them is said once.

    Args:
        rows: With the same columns. Those that hold a dict are left out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = [k for k, v in rows[0].items() if not isinstance(v, dict)]
    if len(rows) > 2:
        same = {n for n in names if len({row[n] for row in rows}) == 1}
        print(", ".join(f"{n} {rows[0][n]}" for n in names if n in same))
        names = [n for n in names if n not in same]
    table = Table(box=box.SIMPLE)
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        values = (row[name] for name in names)
        table.add_row(*("" if v is None else str(v) for v in values))
    width = None if sys.stdout.isatty() else 180
    Console(width=width).print(table)


def write(result: Mapping[str, Any], folder: str) -> None:
    """Writes `<what>.json`, and `<what>.png` where the rows have ratios.

    Args:
        result: JSON values; `what` and `rows` among them.
        folder: Where to; it exists.
    """
    from keras_switch import files
    from keras_switch_train import plots

    path = os.path.join(folder, f"{result['what']}.json")
    with files.atomic_write(path) as file:
        file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if "ratio" in result["rows"][0]:
        path = os.path.join(folder, f"{result['what']}.png")
        plots.plot_ratios(result["rows"], path)
