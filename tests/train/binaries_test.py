"""Pre-training, generation and analysis, end to end on a tiny model."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from keras_switch import analysis, models
from keras_switch_train import pretrain

TRAIN = Path(__file__).resolve().parents[2] / "train"
NOUNS = "cat dog bird horse mouse house garden river market teacher".split()
VERBS = "sees hears likes finds leaves follows paints remembers".split()


def start(binary, *arguments):
    return subprocess.run(
        [
            sys.executable,
            str(TRAIN / f"{binary}.py"),
            f"--backend={keras.backend.backend()}",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_SWITCH_CACHE": os.environ["TEST_CACHE"]},
    )


def run(binary, *arguments):
    done = start(binary, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A corpus of made-up sentences and a preset with random weights."""
    folder = tmp_path_factory.mktemp("binaries")
    os.environ["TEST_CACHE"] = str(folder / "cache")
    (folder / "text").mkdir()
    rng = np.random.default_rng(0)
    for i in range(400):
        words = [
            word
            for _ in range(20)
            for word in ("the", rng.choice(NOUNS), rng.choice(VERBS))
        ]
        words.append(f"number {i}")
        (folder / "text" / f"{i}.txt").write_text(" ".join(words) + ".")
    backbone = models.SwitchBackbone(
        vocabulary_size=320 + 100,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        num_experts=4,
        dropout=0.0,
    )
    backbone.save_to_preset(str(folder / "start"))
    return folder


def common(files):
    return (
        f"--corpus={files}/text/*.txt",
        "--input_length=32",
        "--batch_size=8",
    )


@pytest.fixture(scope="module")
def trained(files):
    """The work directory of a short run, and what it printed."""
    workdir = files / "run"
    printed = run(
        "pretrain",
        *common(files),
        f"--preset={files}/start",
        f"--workdir={workdir}",
        "--minutes=0",
        "--steps=25",
        "--eval_every=10",
        "--eval_batches=2",
        "--learning_rate=0.1",
        "--samples=2",
    )
    return workdir, printed


@pytest.mark.slow
def test_pretrain_prints_the_held_out_loss_falling(trained):
    workdir, printed = trained
    lines = [line for line in printed.splitlines() if "held-out loss" in line]
    assert [line.split("|")[0] for line in lines] == [
        "step     10 ",
        "step     20 ",
        "step     25 ",
    ]
    assert all("tokens/s" in line and "dropped" in line for line in lines)
    with open(workdir / "history.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["val_loss"]) for row in rows]
    assert max(losses[1:]) < losses[0]
    assert [int(row["step"]) for row in rows] == [10, 20, 25]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)


@pytest.mark.slow
def test_pretrain_leaves_history_samples_and_plots(trained):
    workdir, printed = trained
    content = json.loads((workdir / "history.json").read_text())
    assert content["flags"]["batch_size"] == 8
    assert content["flags"]["steps"] == 25
    names = content["history"]
    assert len(names["val_loss"]) == 3
    assert "encoder_layer_1/dropped_fraction" in names
    assert "decoder_layer_1/router_entropy" in names
    samples = (workdir / "samples.txt").read_text()
    assert samples.count("model: ") == samples.count("truth: ") == 2
    assert samples.strip() in printed
    plots = {path.name for path in workdir.glob("*.png")}
    assert plots == {
        "loss.png",
        "dropped_fraction.png",
        "max_mean_load.png",
        "router_entropy.png",
        "load.png",
        "routing.png",
        "specialisation_encoder_layer_1.png",
        "specialisation_decoder_layer_1.png",
    }


@pytest.mark.slow
def test_preset_is_the_trained_model(files, trained):
    workdir, _ = trained
    start = models.SwitchBackbone.from_preset(str(files / "start"))
    lm = models.SwitchSeq2SeqLM.from_preset(str(workdir / "preset"))
    assert lm.preprocessor.encoder_sequence_length == 32
    assert lm.preprocessor.tokenizer.vocabulary_size() == 420
    before, after = (
        keras.ops.convert_to_numpy(model.token_embedding.embeddings)
        for model in (start, lm.backbone)
    )
    assert before.shape == after.shape
    assert np.abs(before - after).max() > 1e-3


@pytest.mark.slow
def test_generate_fills_in_blanks(trained):
    workdir, _ = trained
    printed = run(
        "generate",
        f"--preset={workdir}/preset",
        "--prompt=the cat <extra_id_0> the dog.",
        "--prompt=the bird",
        "--max_length=6",
    )
    blocks = printed.strip().split("\n\n")
    assert len(blocks) == 2
    assert blocks[0].startswith("prompt: the cat <extra_id_0> the dog.")
    assert "filled: the cat [" in blocks[0]
    assert "filled" not in blocks[1]


@pytest.mark.slow
def test_analyze_writes_tables_and_plots(files, trained):
    workdir, _ = trained
    out = files / "analysis"
    printed = run(
        "analyze",
        *common(files),
        f"--preset={workdir}/preset",
        f"--workdir={out}",
        "--batches=1",
    )
    assert "encoder_layer_1" in printed and "max/mean" in printed
    layers = json.loads((out / "routing.json").read_text())
    assert [layer["name"] for layer in layers] == [
        "encoder_layer_1",
        "decoder_layer_1",
    ]
    for layer in layers:
        assert sum(layer["load"]) == pytest.approx(1)
        assert 1 <= layer["max_mean_load"] <= 4
        assert layer["num_tokens"] > 0
    assert (out / "specialisation_decoder_layer_1.png").exists()


def short(files, workdir, *more):
    """Flags of a run of a few steps."""
    return (
        *common(files),
        f"--preset={files}/start",
        f"--workdir={workdir}",
        "--minutes=0",
        "--steps=3",
        "--eval_every=3",
        "--eval_batches=1",
        "--samples=1",
        *more,
    )


@pytest.mark.slow
@pytest.mark.any_backend
def test_pretrain_in_half_precision_on_short_rows(files):
    workdir = files / "half"
    more = ("--dtype=mixed_bfloat16", "--input_length=12")
    run("pretrain", *short(files, workdir, *more))
    config = json.loads((workdir / "preset" / "config.json").read_text())
    assert "mixed_bfloat16" in json.dumps(config["config"]["dtype"])
    assert (workdir / "samples.txt").read_text().count("model: ") == 1
    assert (workdir / "routing.json").exists()


@pytest.mark.slow
@pytest.mark.any_backend
def test_pretrain_saves_nothing_of_a_run_that_diverged(files):
    workdir = files / "diverged"
    done = start("pretrain", *short(files, workdir, "--learning_rate=1e30"))
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("pretrain.py: training diverged within ")
    assert "Traceback" not in done.stderr
    left = {path.name for path in workdir.iterdir()}
    assert left.isdisjoint({"preset", "history.json", "samples.txt"})


@pytest.mark.slow
def test_balance_loss_reaches_the_routers(files):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    backbone = models.SwitchBackbone.from_preset(str(files / "start"))
    layers = analysis.sparse_layers(backbone).values()
    assert {x.router.load_balancing_loss_weight for x in layers} == {0.01}
    with flagsaver.flagsaver(balance_loss=0.0):
        pretrain._make_model(backbone)
    assert {x.router.load_balancing_loss_weight for x in layers} == {0.0}
