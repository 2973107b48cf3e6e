"""PNG plots of what the binaries measured."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

# Figures without pyplot: they need no display and leave no global state.
from matplotlib.figure import Figure

_NOT_IN_LABELS = ("backend", "against", "ratio", "medians", "bests", "target")


def plot_ratios(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike
) -> str:
    """A bar for the ratio of each row, and a panel for each rival.

    Args:
        rows: Of `benchmark.py`: with `against`, `ratio` (whose times are
            divided), `medians`, `bests`, and `target`, such as `">= 1.8"`, or
            `None`, drawn green where the medians reach it and red where not.
            What stands before the times and differs between rows is the label
            of a bar.
        path: File to write.

    Returns:
        The path.
    """
    rivals = list(dict.fromkeys(row["against"] for row in rows))
    groups = [[r for r in rows if r["against"] == rival] for rival in rivals]
    heights = [2 + len(group) for group in groups]
    figure = Figure(figsize=(8, 1 + 0.35 * sum(heights)), layout="constrained")
    panels = figure.subplots(
        len(rivals), 1, squeeze=False, height_ratios=heights
    )[:, 0]
    names = _label_names(rows)
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, group, [_label(row, names) for row in group])
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    return os.fspath(path)


def _label_names(rows):
    """Columns that say what was computed, where they differ."""
    names = []
    for name in rows[0]:
        if name.startswith("ours"):
            break
        if name not in _NOT_IN_LABELS:
            names.append(name)
    differ = [n for n in names if len({str(row[n]) for row in rows}) > 1]
    return differ or names[:1]


def _label(row, names):
    # Words speak for themselves, numbers do not.
    parts = (
        row[n] if isinstance(row[n], str) else f"{n} {row[n]}" for n in names
    )
    return ", ".join(parts)


def _panel(axes, rows, labels):
    places = range(len(rows))
    axes.barh(places, [row["medians"] for row in rows], label="medians")
    bests = [row["bests"] for row in rows]
    axes.plot(bests, places, "o", ms=4, color="black", label="bests")
    for place, row in zip(places, rows, strict=True):
        if row["target"] is not None:
            value = float(row["target"].split()[1])
            color = "lime" if _reached(row) else "red"
            ends = [place - 0.4, place + 0.4]
            axes.plot([value, value], ends, color, lw=3)
            axes.text(
                value, place, f" {row['target']}", va="center", fontsize=7
            )
    axes.axvline(1, color="gray", ls=":")
    axes.set_yticks(places, labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    backends = sorted({row["backend"] for row in rows})
    axes.set_title(
        f"time of {rows[0]['ratio'].replace(' / ', ' / time of ')}, "
        f"{', '.join(backends)}",
        fontsize="medium",
    )


def _reached(row):
    sign, value = row["target"].split()
    ratio = row["medians"]
    return ratio <= float(value) if sign == "<=" else ratio >= float(value)


def plot_growth(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike
) -> str:
    """What a device computes, holds and sends, as multiples of the first row.

    Args:
        rows: Of `growth.py`: `devices`, and numbers by name.
        path: File to write.

    Returns:
        The path.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    devices = [row["devices"] for row in rows]
    for name, first in rows[0].items():
        is_size = "MB" in name and "paper" not in name
        if name == "GFLOP" or (is_size and first):
            ratios = [row[name] / first for row in rows]
            axes.plot(devices, ratios, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices, map(str, devices))
    axes.set_ylim(0, 1.5)
    axes.set_xlabel("devices; experts and rows grow with them")
    axes.set_ylabel(f"of one device, over that of {devices[0]} devices")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return os.fspath(path)
