"""What `multilingual.py` shows: tables and plots by language."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_switch_train import (
    multilingual_plots,
    results,
    study_plots,
    study_report,
)

# Switch Transformers, section 4.3: mSwitch-Base against mT5-Base
# after a million steps.
PAPER = {"mean": 5.0, "part": 0.91, "at least": 4.0}


def write(
    folder: str, messages: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Reads the arms that are done, prints tables, writes files and plots.

    Args:
        folder: `--workdir` of `multilingual.py`.
        messages: By language, by key.

    Returns:
        What `results.json` holds.
    """
    from keras_switch import files

    runs = study_report.read(folder)
    scripts = {code: script(texts.values()) for code, texts in messages.items()}
    languages = _languages(runs, messages, scripts)
    found = {
        "arms": [study_report.row_of_run(run) for run in runs.values()],
        "main": study_report.compare_main(runs),
        "summary": _summaries(languages),
        "specialisation": _layers(runs, scripts),
        "languages": languages,
    }
    table = markdown(languages)
    for name, text in (
        ("results.json", json.dumps(found, indent=1)),
        ("languages.md", table),
    ):
        with files.atomic_write(os.path.join(folder, name)) as file:
            file.write_text(text, encoding="utf-8")
    for title, rows in found.items():
        if rows and title != "languages":
            print(f"\n{title}")
            results.show(rows)
    print(f"\n{table}")
    for name, figure in _figures(runs, languages, scripts).items():
        with files.atomic_write(os.path.join(folder, name)) as path:
            figure.savefig(path, format="png", dpi=120)
    return found


def script(texts) -> str:
    """The script of most letters, as Unicode names it: `"CYRILLIC"`."""
    letters = (c for text in texts for c in text if c.isalpha())
    names = Counter(unicodedata.name(c, "?").split()[0] for c in letters)
    return names.most_common(1)[0][0]


def _languages(runs, messages, scripts):
    """The table of domains, with the steps to the dense arm's last loss."""
    rows = []
    for row in study_report.compare_domains(runs):
        code, seed = row.pop("domain"), row.pop("seed")
        dense, switch = (runs[name, seed].curve for name in ("dense", "switch"))
        column = f"val_loss of {code}"
        loss = dense[column][-1]
        mine, cost = (
            study_report.first_reach(curve[column], curve["step"], loss)
            for curve in (dense, switch)
        )
        ratio = None if cost is None else mine / cost
        del row["documents"]  # a language has one
        rows.append(
            {
                "seed": seed,
                "language": code,
                "script": scripts[code],
                "messages": len(messages[code]),
                **row,
                "switch step": cost and round(cost),
                "speed-up": ratio and study_report.rounded(ratio, 2),
            }
        )
    return rows


def _summaries(languages):
    """What the paper says of its languages, of ours, for each seed."""
    rows = []
    for seed in sorted({row["seed"] for row in languages}):
        mine = [row for row in languages if row["seed"] == seed]
        ratios = np.array([r["speed-up"] for r in mine if r["speed-up"]])
        rows.append(
            {
                "seed": seed,
                "languages": len(mine),
                "better at the end": sum(row["gain"] > 0 for row in mine),
                "reached": len(ratios),
                "mean speed-up": _of(np.mean, ratios),
                "least": _of(np.min, ratios),
                "median": _of(np.median, ratios),
                "most": _of(np.max, ratios),
                "at least 4": int(np.sum(ratios >= PAPER["at least"])),
                "mean, paper": PAPER["mean"],
                "at least 4, paper": f"{PAPER['part']:.0%}",
            }
        )
    return rows


def _of(function, ratios):
    """Of the languages whose loss was reached, if there are any."""
    return study_report.rounded(function(ratios), 2) if len(ratios) else None


def _layers(runs, scripts):
    """How much a token's language, or script, says of its expert.

    Mutual information in nats, each language with the same weight: 0 if all
    languages have the same load. The logarithm of the number of experts is
    the most that there can be.
    """
    rows = []
    for (name, seed), run in runs.items():
        if name != "switch":
            continue
        of = [scripts[code] for code in run.ends["domains"]]
        for layer in next(iter(run.ends["domains"].values()))["load"]:
            load = study_report.loads(run.ends, layer)
            rows.append(
                {
                    "seed": seed,
                    "layer": layer,
                    "of language": _information(load, range(len(load))),
                    "of script": _information(load, of),
                    "at most": study_report.rounded(np.log(load.shape[1]), 3),
                    "max/mean load of a language": study_report.rounded(
                        load.max() * load.shape[1], 2
                    ),
                }
            )
    return rows


def _information(load, groups):
    """Of the group of a row: mean divergence of groups from all, in nats."""
    groups = np.array(list(groups))
    total = 0.0
    for group in np.unique(groups):
        part = load[groups == group]
        mine, all_of_it = part.mean(axis=0), load.mean(axis=0)
        present = mine > 0
        ratio = mine[present] / all_of_it[present]
        total += len(part) * np.sum(mine[present] * np.log(ratio))
    return study_report.rounded(total / len(load), 3)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows with the same columns as a table in Markdown."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [
        ["" if value is None else str(value) for value in row.values()]
        for row in rows
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _figures(runs, languages, scripts):
    figures = {}
    if runs:
        figures["loss.png"] = study_plots.loss_figure(list(runs.values()))
    if languages:
        figures["speed-ups.png"] = multilingual_plots.speed_up_figure(
            languages, PAPER
        )
    layers = _layers(runs, scripts)
    for (name, seed), run in runs.items():
        if name == "switch":
            mine = [row for row in layers if row["seed"] == seed]
            most = max(mine, key=lambda row: row["of language"])["layer"]
            # Languages of a script stand together.
            codes = list(run.ends["domains"])
            order = sorted(
                range(len(codes)), key=lambda i: (scripts[codes[i]], codes[i])
            )
            figures[f"specialisation-seed{seed}.png"] = (
                study_plots.specialisation_figure(
                    {most: study_report.loads(run.ends, most)[order]},
                    [codes[i] for i in order],
                )
            )
    return figures
