"""What the arms of `study.py` show: ratios, tables, plots."""

import csv
import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_switch_train import study_arms, study_plots

# Parts of the dense arm's steps at which the two are compared.
POINTS = (0.125, 0.25, 0.5, 0.75, 1.0)
# Arms that are compared with another at equal steps.
_OF_EQUAL_BATCHES = {
    *study_arms.BOUND,
    *study_arms.ABLATIONS,
    *study_arms.ROUTERS,
}


class Run(NamedTuple):
    """An arm that was trained, with one seed."""

    name: str
    seed: int
    curve: dict[str, np.ndarray]  # of `step`, `val_loss`, `seconds`, ...
    ends: dict[str, Any]


def write(folder: str) -> dict[str, Any]:
    """Reads the arms that are done, prints tables, writes JSON and plots.

    Args:
        folder: `--workdir` of `study.py`.

    Returns:
        What `results.json` holds.
    """
    from keras_switch import files
    from keras_switch_train import results as figures

    runs = read(folder)
    results = {
        "arms": [row_of_run(run) for run in runs.values()],
        "main": compare_main(runs),
        "others": _compare_others(runs),
        "routers": _routers_by_step(runs),
        "small batches": _compare_small_batches(runs),
        "domains": compare_domains(runs),
    }
    with files.atomic_write(os.path.join(folder, "results.json")) as file:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    for title, rows in results.items():
        if rows:
            print(f"\n{title}")
            figures.show(rows)
    for name, figure in _figures(runs, results["main"]).items():
        with files.atomic_write(os.path.join(folder, name)) as path:
            figure.savefig(path, format="png", dpi=120)
    return results


def read(folder: str) -> dict[tuple[str, int], Run]:
    """The arms that are done, by name and seed."""
    runs = {}
    for path in sorted(glob.glob(os.path.join(folder, "arms", "*/ends.json"))):
        job = os.path.dirname(path)
        with open(path, encoding="utf-8") as file:
            ends = json.load(file)
        with open(os.path.join(job, "arm.json"), encoding="utf-8") as file:
            arm = json.load(file)
        curve = read_curve(os.path.join(job, "curve.csv"))
        run = Run(arm["name"], arm["seed"], curve, ends)
        runs[run.name, run.seed] = run
    return runs


def read_curve(path: str) -> dict[str, np.ndarray]:
    """The columns of a `curve.csv`."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(r[name]) for r in rows]) for name in rows[0]}


def first_reach(
    losses: Sequence[float], costs: Sequence[float], wanted: float
) -> float | None:
    """What it cost to reach a loss for the first time.

    Between two evaluations the loss is taken to fall in a straight line.

    Args:
        losses: At each evaluation.
        costs: Steps or seconds until each evaluation.
        wanted: A loss.

    Returns:
        The cost, or `None` if the loss was never reached.
    """
    for i, loss in enumerate(losses):
        if loss <= wanted:
            if i == 0:
                return float(costs[0])
            part = (losses[i - 1] - wanted) / (losses[i - 1] - loss)
            return float(costs[i - 1] + part * (costs[i] - costs[i - 1]))
    return None


def row_of_run(run: Run) -> dict[str, Any]:
    """Size, last loss and time of an arm."""
    last = {name: float(column[-1]) for name, column in run.curve.items()}
    return {
        "arm": run.name,
        "seed": run.seed,
        "parameters": run.ends["parameters"]["total"],
        "active": run.ends["parameters"]["active"],
        "MFLOP a token": round(run.ends["parameters"]["flops"] / 1e6, 3),
        "steps": int(last["step"]),
        "held-out loss": rounded(last["val_loss"]),
        "ms a step": round(1e3 * last["seconds"] / last["step"], 1),
        "CPU ms a step": round(1e3 * last["cpu_seconds"] / last["step"], 1),
        **run.ends["machine"],
    }


def rounded(value: float, digits: int = 4) -> float | None:
    """A float for JSON, which has no NaN: `None` for an arm that diverged."""
    return round(float(value), digits) if math.isfinite(value) else None


def compare_main(runs: Mapping[tuple[str, int], Run]) -> list[dict[str, Any]]:
    """Steps and time of `switch` to what `dense` has at several points."""
    rows = []
    for (name, seed), dense in runs.items():
        if name != "dense" or ("switch", seed) not in runs:
            continue
        switch = runs["switch", seed].curve
        count = len(dense.curve["step"])
        for i in sorted({max(math.ceil(count * p), 1) - 1 for p in POINTS}):
            loss = dense.curve["val_loss"][i]
            row = {
                "seed": seed,
                "dense step": int(dense.curve["step"][i]),
                "loss": rounded(loss),
            }
            for title, column in (
                ("steps", "step"),
                ("time", "seconds"),
                ("CPU time", "cpu_seconds"),
            ):
                mine, cost = (
                    first_reach(curve["val_loss"], curve[column], loss)
                    for curve in (dense.curve, switch)
                )
                ratio = None if cost is None else mine / cost
                if column == "step":
                    row["switch step"] = cost and round(cost)
                row[f"{title} ratio"] = ratio and rounded(ratio, 2)
            rows.append(row)
    return rows


def _compare_others(runs):
    """The other arms beside what they are to be compared with."""
    rows = []
    for (name, seed), run in runs.items():
        arm = study_arms.ARMS[name]
        base = runs.get((arm.against, seed))
        if name not in _OF_EQUAL_BATCHES or base is None:
            continue
        common = np.intersect1d(base.curve["step"], run.curve["step"])
        if not len(common):
            continue
        mine, its = (
            float(r.curve["val_loss"][r.curve["step"] == common[-1]][0])
            for r in (run, base)
        )
        rows.append(
            {
                "arm": name,
                "seed": seed,
                "step": int(common[-1]),
                "loss": rounded(mine),
                "against": arm.against,
                "difference": rounded(mine - its),
                "CPU ms a step": row_of_run(run)["CPU ms a step"],
                **_routing_at(run.curve, common[-1]),
                "published": arm.paper,
            }
        )
    return rows


def _routing_at(curve, step):
    """What the routers did in the steps before one."""
    row = curve["step"] == step
    return {
        title: rounded(curve[name][row][0], 3) if name in curve else None
        for title, name in (
            ("dropped", "routing/dropped_fraction"),
            ("max over mean load", "routing/max_mean_load"),
            ("churn", "routing/churn"),
        )
    }


def _routers_by_step(runs):
    """Held-out loss of the routers at each evaluation, beside the main arms."""
    rows = []
    for seed in sorted({s for name, s in runs if name in study_arms.ROUTERS}):
        names = ("dense", "switch", *study_arms.ROUTERS)
        mine = [runs[name, seed] for name in names if (name, seed) in runs]
        steps = min((run.curve["step"] for run in mine), key=len)
        for run in mine:
            curve = run.curve
            losses = np.interp(
                steps, curve["step"], curve["val_loss"], np.nan, np.nan
            )
            last = curve["step"] == steps[-1]
            load = curve.get("val_routing/max_mean_load")
            rows.append(
                {
                    "arm": run.name,
                    "seed": seed,
                    **{
                        f"loss at {step:.0f}": rounded(loss, 3)
                        for step, loss in zip(steps, losses, strict=True)
                    },
                    "max over mean load, evaluated": None
                    if load is None or not last.any()
                    else rounded(load[last][0], 2),
                }
            )
    return rows


def _compare_small_batches(runs):
    """Loss and balance, after rows as many for each, at the last evaluation."""
    rows = []
    for (name, seed), run in runs.items():
        if name not in study_arms.SMALL_BATCHES:
            continue
        last = {title: float(column[-1]) for title, column in run.curve.items()}
        size = study_arms.settings(study_arms.ARMS[name])["batch_size"]
        rows.append(
            {
                "arm": name,
                "seed": seed,
                "rows": size * int(last["step"]),
                "steps": int(last["step"]),
                "held-out loss": rounded(last["val_loss"]),
                **{
                    title: rounded(last[f"routing/{statistic}"], 3)
                    for title, statistic in (
                        ("dropped", "dropped_fraction"),
                        ("max over mean load, of a step", "max_mean_load"),
                        ("dead experts, of a step", "dead_expert_fraction"),
                        ("balance loss", "load_balancing_loss"),
                    )
                },
                "max over mean load, of all domains": rounded(
                    _largest_load(run.ends), 3
                ),
                "CPU ms a row": rounded(
                    1e3 * last["cpu_seconds"] / last["step"] / size, 1
                ),
            }
        )
    return rows


def _largest_load(ends):
    """Of the busiest expert, over the mean; the mean over the layers."""
    first = next(iter(ends["domains"].values()))
    layers = [loads(ends, layer).mean(axis=0) for layer in first["load"]]
    return np.mean([load.max() / load.mean() for load in layers])


def compare_domains(
    runs: Mapping[tuple[str, int], Run],
) -> list[dict[str, Any]]:
    """Loss by domain, and how far its load is from that of all."""
    rows = []
    for (name, seed), switch in runs.items():
        dense = runs.get(("dense", seed))
        if name != "switch" or dense is None:
            continue
        for domain, ends in switch.ends["domains"].items():
            loss = dense.ends["domains"][domain]["loss"]
            row = {
                "seed": seed,
                "domain": domain,
                "documents": ends["documents"],
                "targets": ends["targets"],
                "dense": rounded(loss),
                "switch": rounded(ends["loss"]),
                "gain": rounded(loss - ends["loss"]),
            }
            for stack in ("encoder", "decoder"):
                surprises = [
                    surprise(switch.ends, domain, layer)
                    for layer in ends["load"]
                    if layer.startswith(stack)
                ]
                mean = np.mean(surprises) if surprises else 0.0
                row[f"{stack}: KL of the load"] = rounded(mean, 3)
            rows.append(row)
    return rows


def surprise(ends: Mapping[str, Any], domain: str, layer: str) -> float:
    """How far a domain's load is from the mean of all: KL, in nats.

    0: its tokens go where all go; the logarithm of the number of domains:
    to experts that serve no other.
    """
    mine = np.array(ends["domains"][domain]["load"][layer])
    mean = loads(ends, layer).mean(axis=0)
    present = mine > 0
    return float(np.sum(mine[present] * np.log(mine[present] / mean[present])))


def loads(ends: Mapping[str, Any], layer: str) -> np.ndarray:
    """The load of each expert in each domain, `[domains, E]`."""
    return np.array([d["load"][layer] for d in ends["domains"].values()])


def _figures(runs, ratios):
    main = [run for run in runs.values() if run.name in ("dense", "switch")]
    figures = {}
    if main:
        figures["loss.png"] = study_plots.loss_figure(main)
    if ratios:
        figures["ratio.png"] = study_plots.ratio_figure(ratios)
    routed = [
        (run, runs["switch", run.seed])
        for run in runs.values()
        if run.name in study_arms.ROUTERS and ("switch", run.seed) in runs
    ]
    if routed:
        figures["routers.png"] = study_plots.routers_figure(routed)
    for run in main:
        if run.name == "switch":
            first = next(iter(run.ends["domains"].values()))
            figures[f"specialisation-seed{run.seed}.png"] = (
                study_plots.specialisation_figure(
                    {layer: loads(run.ends, layer) for layer in first["load"]},
                    list(run.ends["domains"]),
                )
            )
    return figures
