"""The routing report of a model: tables on the console, JSON and PNG files."""

import json
import os
import sys
from typing import Any

import numpy as np


def write(model: Any, held_out: Any, tokenizer: Any, folder: str) -> Any:
    """Runs a model on held-out batches and writes what its routers did.

    Args:
        model: A `SwitchBackbone` with a sparse layer.
        held_out: A `keras_switch.data.HeldOut`.
        tokenizer: Names the tokens.
        folder: Where `routing.json` and the plots go.

    Returns:
        A `keras_switch.analysis.RoutingReport`.
    """
    from keras_switch import analysis, files, plots

    batches = (held_out.batch(i)[0] for i in range(len(held_out)))
    report = analysis.routing_report(
        model, batches, tokenizer.id_to_token, num_tokens=400
    )
    layers = [_plain(layer) for layer in report.layers]
    with files.atomic_write(os.path.join(folder, "routing.json")) as file:
        file.write_text(json.dumps(layers, indent=1), encoding="utf-8")
    plots.plot_load(report, os.path.join(folder, "load.png"))
    plots.plot_statistics(report, os.path.join(folder, "routing.png"))
    for layer in report.layers:
        name = f"specialisation_{layer.name.replace('/', '_')}.png"
        plots.plot_specialisation(
            report, layer.name, os.path.join(folder, name)
        )
    show(report)
    return report


def show(report: Any, top_tokens: int = 8) -> None:
    """Prints a report as tables.

    Args:
        report: A `keras_switch.analysis.RoutingReport`.
        top_tokens: How many tokens to print for an expert.
    """
    from rich.table import Table

    table = Table(title="Routing on held-out text")
    for column in (
        "layer",
        "tokens",
        "max/mean load",
        "dropped in training",
        "confidence",
        "entropy",
        "entropy given token",
        "balance loss",
    ):
        table.add_column(column, justify="right", no_wrap=column == "layer")
    for layer in report.layers:
        table.add_row(
            layer.name,
            f"{layer.num_tokens:,}",
            f"{layer.max_mean_load:.2f}",
            f"{layer.dropped_fraction:.1%}",
            f"{layer.router_confidence:.2f}",
            f"{layer.router_entropy:.2f}",
            f"{layer.token_entropy:.2f}",
            f"{layer.load_balancing_loss:.2f}",
        )
    console().print(table)
    for layer in report.layers:
        console().print(_specialists(layer, top_tokens, Table))


def console() -> Any:
    """A rich console, wide enough for a table where there is no terminal."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=110)


def _specialists(layer, top_tokens, table_class):
    table = table_class(title=f"{layer.name}: tokens that go to one expert")
    table.add_column("expert", justify="right")
    table.add_column("load", justify="right")
    table.add_column("tokens, and how many of them")
    for expert in np.argsort(-layer.load, kind="stable")[:16]:
        tokens = layer.top_tokens(int(expert), top_tokens)
        # Escaped: a token such as "[" is rich's markup.
        text = "  ".join(
            f"{token} {share:.0%}".replace("[", r"\[")
            for token, share in tokens
        )
        table.add_row(str(expert), f"{layer.load[expert]:.1%}", text)
    return table


def _plain(layer):
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in layer._asdict().items()
    }
