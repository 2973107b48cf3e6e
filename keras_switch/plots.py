"""PNG plots of a training run and of a routing report."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Figures without pyplot: they need no display and leave no global state.
from matplotlib.figure import Figure

_EXPERT_LABELS = 32  # beyond that the ticks would run into each other


def plot_history(
    history: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    steps: Sequence[int] | None = None,
) -> str:
    """Training and held-out loss by step.

    Args:
        history: Keras' `History.history`, or the like.
        path: File to write.
        steps: Step of each entry; `None` counts them from 1.

    Returns:
        The path.

    Raises:
        ValueError: If `history` has no loss.
    """
    names = [name for name in ("loss", "val_loss") if name in history]
    if not names:
        raise ValueError(
            "history must have `loss` or `val_loss`; received "
            f"{sorted(history)}."
        )
    figure, axes = _figure("Loss", "step", "nats per target token")
    labels = {"loss": "training", "val_loss": "held out"}
    for name in names:
        x = steps or range(1, len(history[name]) + 1)
        axes.plot(x, history[name], marker="o", ms=3, label=labels[name])
    axes.legend()
    return _save(figure, path)


def plot_routing_history(
    history: Mapping[str, Sequence[float]],
    statistic: str,
    path: str | os.PathLike,
    steps: Sequence[int] | None = None,
) -> str:
    """One routing statistic by step, a line for each sparse layer.

    Args:
        history: Keras' `History.history`, with entries that are called
            `<layer>/<statistic>`.
        statistic: Such as `"dropped_fraction"`.
        path: File to write.
        steps: Step of each entry; `None` counts them from 1.

    Returns:
        The path.

    Raises:
        ValueError: If no layer has the statistic.
    """
    names = [
        name
        for name in history
        if name.endswith(f"/{statistic}") and not name.startswith("val_")
    ]
    if not names:
        raise ValueError(
            f"history must have entries that end in /{statistic}; received "
            f"{sorted(history)}."
        )
    figure, axes = _figure(statistic.replace("_", " "), "step", "")
    for name in names:
        x = steps or range(1, len(history[name]) + 1)
        axes.plot(x, history[name], label=name.rsplit("/", 1)[0])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return _save(figure, path)


def plot_load(report: Any, path: str | os.PathLike) -> str:
    """The load of every expert of every sparse layer, busiest first.

    Args:
        report: From `keras_switch.analysis.routing_report`.
        path: File to write.

    Returns:
        The path.
    """
    figure, axes = _figure(
        "Load of the experts", "expert, busiest first", "fraction of edges"
    )
    for layer in report.layers:
        load = np.sort(layer.load)[::-1]
        axes.plot(load, marker="o", ms=3, label=layer.name)
    num_experts = max(len(layer.load) for layer in report.layers)
    axes.axhline(1 / num_experts, color="gray", ls=":", label="uniform")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    return _save(figure, path)


def plot_statistics(report: Any, path: str | os.PathLike) -> str:
    """Drop, max/mean load, confidence and entropy, a bar for each layer.

    Args:
        report: From `keras_switch.analysis.routing_report`.
        path: File to write.

    Returns:
        The path.
    """
    panels = (
        ("dropped_fraction", "dropped fraction at training capacity"),
        ("max_mean_load", "max / mean load"),
        ("router_confidence", "router confidence"),
        ("router_entropy", "router entropy, nats"),
    )
    names = [layer.name for layer in report.layers]
    figure = Figure(figsize=(9, 2 + 0.5 * len(names)), layout="constrained")
    grid = figure.subplots(2, 2)
    for axes, (statistic, title) in zip(grid.flat, panels, strict=True):
        values = [getattr(layer, statistic) for layer in report.layers]
        axes.barh(names, values)
        axes.invert_yaxis()
        axes.set_title(title, fontsize="medium")
    uniform = np.log([len(layer.load) for layer in report.layers]).max()
    grid.flat[3].axvline(uniform, color="gray", ls=":")
    return _save(figure, path)


def plot_specialisation(
    report: Any, layer: str, path: str | os.PathLike, num_tokens: int = 60
) -> str:
    """Which experts the most frequent tokens go to, as a map.

    Args:
        report: From `keras_switch.analysis.routing_report`.
        layer: Name of a layer of the report.
        path: File to write.
        num_tokens: How many of the most frequent tokens to show.

    Returns:
        The path.

    Raises:
        ValueError: If the report has no such layer.
    """
    by_name = {each.name: each for each in report.layers}
    if layer not in by_name:
        raise ValueError(
            f"layer must be one of {sorted(by_name)}; received {layer!r}."
        )
    table = by_name[layer]
    share = table.token_share[:num_tokens]  # [N, E]
    # Tokens that share their favourite expert stand together.
    order = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
    size = (3 + 0.25 * share.shape[1], 1.5 + 0.17 * len(share))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share[order], aspect="auto", vmin=0, vmax=1)
    axes.set_yticks(
        range(len(order)),
        # Dollar signs would start a formula.
        [table.tokens[i].replace("$", r"\$") for i in order],
        fontsize=7,
    )
    if share.shape[1] <= _EXPERT_LABELS:
        axes.set_xticks(range(share.shape[1]))
    axes.set_xlabel("expert")
    axes.set_title(f"{layer}: where frequent tokens go", fontsize="medium")
    figure.colorbar(image, label="fraction of the token's edges")
    return _save(figure, path)


def _figure(title, xlabel, ylabel):
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure, path):
    figure.savefig(path, dpi=120)
    return os.fspath(path)
