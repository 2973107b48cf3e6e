"""PNG plots of the quality study."""

from collections.abc import Sequence
from typing import Any

import numpy as np

# Figures without pyplot: they need no display and leave no global state.
from matplotlib.figure import Figure


def loss_figure(runs: Sequence[Any]) -> Figure:
    """Held-out loss by step and by seconds.

    Args:
        runs: `study_report.Run`s.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = (("step", "step"), ("seconds", "seconds of training, one core"))
    for axes, (column, label) in zip(
        figure.subplots(1, 2, sharey=True), panels, strict=True
    ):
        for run in runs:
            axes.plot(
                run.curve[column],
                run.curve["val_loss"],
                label=f"{run.name}, seed {run.seed}",
                color="C1" if run.name == "switch" else "C0",
                ls="-" if run.seed == min(r.seed for r in runs) else "--",
            )
        axes.set_xlabel(label)
        axes.set_ylabel("held-out loss, nats per token")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    # The first evaluations would press the rest together.
    shown = [run.curve["val_loss"][len(run.curve["step"]) // 8] for run in runs]
    axes.set_ylim(top=max(shown))
    return figure


def routers_figure(pairs: Sequence[tuple[Any, Any]]) -> Figure:
    """Held-out loss of each router less that of what it is compared with.

    Args:
        pairs: `study_report.Run`s, and those to compare with.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (run, other) in enumerate(pairs):
        steps, mine, its = np.intersect1d(
            run.curve["step"], other.curve["step"], return_indices=True
        )
        change = run.curve["val_loss"][mine] - other.curve["val_loss"][its]
        name = run.name.removeprefix("router_")
        axes.plot(
            steps,
            change,
            marker="ovs"[i // 10 % 3],
            label=f"{name}, seed {run.seed}",
        )
    axes.axhline(0, color="gray", ls=":")
    axes.set_xlabel("step")
    axes.set_ylabel(f"held-out loss less that of {pairs[0][1].name}, nats")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def ratio_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Steps and time of the dense model over those of Switch.

    Args:
        rows: The table `main` of the report.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for seed in sorted({row["seed"] for row in rows}):
        mine = [row for row in rows if row["seed"] == seed]
        steps = [row["dense step"] for row in mine]
        for name, color in (("steps", "C1"), ("time", "C2")):
            axes.plot(
                steps,
                [row[f"{name} ratio"] or np.nan for row in mine],
                marker="o",
                color=color,
                ls="-" if seed == rows[0]["seed"] else "--",
                label=f"{name}, seed {seed}",
            )
    axes.axhline(1, color="gray", ls=":")
    axes.set_xlabel("step of the dense model")
    axes.set_ylabel("dense / Switch, to the same loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def specialisation_figure(
    loads: dict[str, np.ndarray], domains: Sequence[str]
) -> Figure:
    """Where the tokens of each domain go.

    Args:
        loads: Of each layer, `[domains, E]`: parts of a domain's tokens.
        domains: Their names.
    """
    height = 0.4 + 0.2 * len(domains)
    figure = Figure(figsize=(9, 1 + height * len(loads)), layout="constrained")
    grid = figure.subplots(len(loads), 1, squeeze=False)[:, 0]
    for axes, (layer, load) in zip(grid, loads.items(), strict=True):
        # Experts next to those that serve the same domain.
        order = np.argsort(load.argmax(axis=0), kind="stable")
        image = axes.imshow(
            load[:, order] * load.shape[1], vmin=0, vmax=4, cmap="viridis"
        )
        axes.set_yticks(range(len(domains)), domains, fontsize="x-small")
        axes.set_xticks([])
        axes.set_title(layer, fontsize="small")
    axes.set_xlabel("expert")
    figure.colorbar(image, ax=grid, label="load / mean load", shrink=0.5)
    return figure
