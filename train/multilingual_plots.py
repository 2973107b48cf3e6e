"""PNG plots of the study of languages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Figures without pyplot: they need no display and leave no global state.
from matplotlib.figure import Figure

_WIDTH = 0.05


def speed_up_figure(
    rows: Sequence[Mapping[str, Any]], paper: Mapping[str, float]
) -> Figure:
    """How many languages have which speed-up, beside the paper's numbers.

    Args:
        rows: The table `languages` of the report. A language whose loss was
            never reached has no speed-up and is counted in the title.
        paper: `PAPER` of the report.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    ratios = [row["speed-up"] for row in rows if row["speed-up"]]
    most = max([paper["mean"], *ratios]) + 0.5
    edges = np.arange(0.5, most + _WIDTH, _WIDTH)
    axes.hist(ratios, edges, color="C1", label="here")
    if ratios:
        axes.axvline(
            np.mean(ratios),
            color="C1",
            ls="--",
            label=f"mean here: {np.mean(ratios):.2f}",
        )
    axes.axvline(
        paper["mean"],
        color="gray",
        ls="--",
        label=f"mean in the paper: {paper['mean']:g}",
    )
    axes.axvspan(
        paper["at least"],
        most,
        color="gray",
        alpha=0.15,
        label=f"{paper['part']:.0%} of the paper's languages",
    )
    axes.axvline(1, color="black", ls=":")
    axes.set_title(
        f"{len(ratios)} of {len(rows)} reach the dense model's last loss",
        fontsize="medium",
    )
    axes.set_xlabel("dense steps / Switch steps, to the same loss")
    axes.set_ylabel("languages")
    axes.legend(fontsize="small")
    return figure
