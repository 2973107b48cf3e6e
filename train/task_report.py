"""The table that `finetune` and `evaluate` print."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Prints metrics of tasks beside their baselines.

    Args:
        found: By name of the task, from `keras_switch.tasks.report`.
    """
    table = Table(title="Test side, in per cent")
    for title in ("task", "examples", "metric"):
        table.add_column(title)
    for title in ("model", "baseline"):
        table.add_column(title, justify="right")
    table.add_column("the baseline is")
    for name, its in found.items():
        first = (name, f"{its['examples']:,}")
        for metric, value in its["metrics"].items():
            other = its["baseline_metrics"][metric]
            told = its["baseline"] if first[0] else ""
            table.add_row(*first, metric, f"{value:.1f}", f"{other:.1f}", told)
            first = ("", "")
        if "invalid" in its:
            table.add_row("", "", "no label", f"{its['invalid']:.1f}", "", "")
        if its.get("unseen_labels"):
            told = f"{len(its['unseen_labels'])} labels were never trained on"
            table.add_row("", "", "", "", "", told)
    Console(width=112).print(table)


def print_costs(found: dict[str, dict[str, Any]]) -> None:
    """Prints how long answers take, and how large the model is.

    Args:
        found: By name of the task; `cost` as `evaluate` measures it.
    """
    for name, its in found.items():
        cost = its["cost"]
        print(
            f"{name}: {cost['megabytes']:.1f} MB on disk; an answer takes "
            f"{cost['median_ms']:.1f} ms, the longest of {cost['answers']} "
            f"took {cost['longest_ms']:.1f} ms"
        )


def print_sizes(rows: list[dict[str, Any]]) -> None:
    """Prints what the examples of tasks are like.

    Args:
        rows: From `keras_switch.tasks.describe`.
    """
    table = Table(title="Examples")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(
            *(f"{v:,}" if isinstance(v, int) else v for v in row.values())
        )
    Console(width=112).print(table)
