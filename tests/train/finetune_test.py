"""Fine-tuning and evaluation: parts, and a run that is stopped and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import models, resume, tasks
from keras_switch_train import (
    evaluate,
    finetune,
    flags,
    selection,
    task_data,
    task_flags,
    task_report,
)
from tests.mesh import processes
from tests.models import tiny

TRAIN = Path(__file__).resolve().parents[2] / "train"
NOUNS = "cat dog bird horse mouse house garden river market teacher".split()


@pytest.fixture(autouse=True)
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    with flagsaver.flagsaver(backend=keras.backend.backend()):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A task whose answer is a word of the input, and presets."""
    folder = tmp_path_factory.mktemp("finetune")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(300):
        one, two = rng.choice(NOUNS, 2)
        text = f"the {one} sees the {two}, number {i}"
        lines.append(json.dumps({"input": text, "target": str(one)}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    models.SwitchBackbone(
        vocabulary_size=320 + 100,
        num_encoder_layers=2,
        num_decoder_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        num_experts=4,
    ).save_to_preset(str(folder / "start"))
    return folder


def command(binary, files, *arguments):
    return [
        sys.executable,
        str(TRAIN / f"{binary}.py"),
        f"--backend={keras.backend.backend()}",
        f"--task={files}/mine.jsonl",
        "--batch_size=8",
        "--answer_length=8",
        *map(str, arguments),
    ]


def finetuning(files, workdir, *arguments):
    return command(
        "finetune",
        files,
        f"--preset={files}/start",
        f"--workdir={workdir}",
        "--minutes=0",
        "--steps=24",
        "--eval_every=8",
        "--input_length=32",
        "--rate=0.03",
        "--save_every=4",
        "--validation_examples=16",
        *arguments,
    )


@pytest.mark.slow
@pytest.mark.any_backend
def test_a_run_that_was_stopped_goes_on_and_is_measured(files):
    workdir = files / "run"
    arguments = finetuning(files, workdir, "--select=accuracy")
    with open(files / "said", "w") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said)
    checkpoints = workdir / "checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    said = (files / "said").read_text()
    # On a fast machine it may have been over before the signal.
    assert code in (0, resume.EXIT_CODE), said
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert code == 0 or "resumed at step" in done.stderr + done.stdout
    results = json.loads((workdir / "results.json").read_text())
    assert results["best"]["monitor"] == "val_accuracy"
    assert results["best"]["step"] in (8, 16, 24)
    scores = results["tasks"]["mine"]
    assert set(scores["metrics"]) == {"accuracy", "macro_f1"}
    history = json.loads((workdir / "history.json").read_text())["history"]
    assert history["step"] == [8, 16, 24]
    assert history["loss"][-1] < history["loss"][0]
    # What is saved is what was measured.
    out = files / "out.json"
    done = subprocess.run(
        command(
            "evaluate",
            files,
            f"--preset={workdir}/preset",
            f"--results={out}",
        ),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baseline" in done.stdout
    again = json.loads(out.read_text())["tasks"]["mine"]
    assert again["metrics"] == scores["metrics"]


@pytest.mark.parametrize(
    "update, wanted",
    [
        ("all", {"embeddings", "experts", "router", "other"}),
        ("all_but_embeddings", {"experts", "router", "other"}),
        ("all_but_experts", {"embeddings", "router", "other"}),
        ("experts", {"experts"}),
        ("all_but_router", {"embeddings", "experts", "other"}),
    ],
)
@pytest.mark.any_backend
def test_updates_choose_weights(update, wanted):
    lm = tiny.lm()
    total = sum(np.prod(w.shape) for w in lm.trainable_weights)
    with flagsaver.flagsaver(update=update):
        sizes = finetune._choose_weights(lm)
    kinds = {
        "experts"
        if "experts/" in weight.path
        else "router"
        if "/router/" in weight.path
        else "embeddings"
        if "token_embedding/" in weight.path
        else "other"
        for weight in lm.trainable_variables
    }
    assert kinds == wanted
    assert sizes["total"] == total
    assert (sizes["trained"] < total) == (update != "all")
    # It is a matter of this training, not of the model that is saved.
    assert lm.backbone.get_config()["trainable"]


def test_frozen_weights_stay(rng):
    lm = tiny.lm(dropout=0.0)
    weights = lm.trainable_weights
    with flagsaver.flagsaver(update="experts"):
        finetune._choose_weights(lm)
    lm.compile(routing_metrics=None)
    before = [np.array(keras.ops.convert_to_numpy(w)) for w in weights]
    x = tiny.inputs(rng)
    y = x["decoder_token_ids"]
    lm.train_on_batch(x, y, np.ones(y.shape, "float32"))
    changed = [
        (keras.ops.convert_to_numpy(weight) != old).any()
        for weight, old in zip(weights, before, strict=True)
    ]
    # An expert that got no token stays as it is, too.
    assert any(changed)
    for weight, has_changed in zip(weights, changed, strict=True):
        assert "experts/" in weight.path or not has_changed, weight.path


@pytest.mark.any_backend
def test_adapters_are_trained_and_saved_apart(files):
    workdir = files / "lora"
    arguments = finetuning(files, workdir, "--update=lora", "--lora_rank=2")
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((workdir / "results.json").read_text())
    sizes = results["parameters"]
    assert 0 < sizes["trained"] < sizes["total"] / 2
    history = json.loads((workdir / "history.json").read_text())["history"]
    assert history["loss"][-1] < history["loss"][0]
    # The preset holds both in one, and a dense start with the adapters too.
    merged = models.SwitchBackbone.from_preset(str(workdir / "preset"))
    start = models.SwitchBackbone.from_preset(str(files / "start"))
    start.enable_lora(2, list(finetune._ADAPTED))
    start.load_lora_weights(str(workdir / "adapters.lora.h5"))
    x = tiny.inputs(np.random.default_rng(0))
    np.testing.assert_allclose(
        *(
            keras.ops.convert_to_numpy(m(x)["decoder_sequence_output"])
            for m in (start, merged)
        ),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.any_backend
def test_the_rank_of_adapters_needs_them():
    with flagsaver.flagsaver(lora_rank=2):
        absl_flags.FLAGS["lora_rank"].present = 1
        with pytest.raises(flags.UsageError, match="goes with --update=lora"):
            finetune._check_adapters()


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="processes share a mesh on JAX"
)
def test_a_mesh_of_two_processes_finetunes_what_one_device_does(files):
    """Experts that are frozen, their adapters, and the best put back."""
    arguments = ["--steps=4", "--eval_every=2", "--update=lora"]
    arguments += ["--test_examples=4"]
    several = ["--mesh=batch:2,model:2", "--num_processes=2"]
    several += [f"--coordinator=localhost:{processes.free_port()}"]
    running = [finetuning(files, files / "alone", *arguments)]
    for index in range(2):
        more = [*several, f"--process_id={index}"]
        running.append(finetuning(files, files / "mesh", *arguments, *more))
    for process in [processes.run(command, devices=2) for command in running]:
        processes.finish(process)
    found = []
    for name in ("alone", "mesh"):
        text = (files / name / "history.json").read_text()
        lm = models.SwitchSeq2SeqLM.from_preset(str(files / name / "preset"))
        history = json.loads(text)["history"]
        found.append([history["val_loss"], *lm.get_weights()])
        assert (files / name / "results.json").exists()
        assert (files / name / "adapters.lora.h5").exists()
    for alone, mesh in zip(*found, strict=True):
        np.testing.assert_allclose(mesh, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.any_backend
def test_a_dense_model_has_no_experts_to_update():
    lm = tiny.lm(encoder_sparse_step=0, decoder_sparse_step=0)
    with flagsaver.flagsaver(update="experts"):
        with pytest.raises(flags.UsageError, match="--update=experts must"):
            finetune._choose_weights(lm)


@pytest.mark.any_backend
def test_the_recipe_reaches_the_model(files):
    with flagsaver.flagsaver(preset=str(files / "start"), balance_loss=0.5):
        lm = finetune._make_model()
    config = lm.backbone.get_config()
    assert config["dropout"] == 0.1 and config["expert_dropout"] == 0.4
    assert config["capacity_factor"] == 2.0
    layer = next(iter(lm.backbone.stacks["encoder"][1:])).feed_forward
    assert layer.router.load_balancing_loss_weight == 0.5
    for update, wanted in (("all", 1e-3), ("lora", 1e-2)):
        with flagsaver.flagsaver(update=update):
            rate = float(finetune._make_optimizer().learning_rate)
        assert rate == pytest.approx(wanted)


@pytest.mark.any_backend
def test_unknown_tasks_and_metrics_name_their_flag(files, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for value, said in (
        (["glue"], "--task: a task must be one of"),
        ([], "--task: tasks must be at least one"),
        ([str(tmp_path / "empty.csv")], "--task: .*received none"),
        ([str(tmp_path / "no.csv")], "--task: .*that is there"),
    ):
        with flagsaver.flagsaver(task=value):
            with pytest.raises(flags.UsageError, match=said):
                task_flags.load()
    mine = [str(files / "mine.jsonl")]
    with flagsaver.flagsaver(task=mine, metrics=["bleurt"]):
        with pytest.raises(flags.UsageError, match="--metrics: metrics must"):
            task_flags.load()
    with flagsaver.flagsaver(task=mine, metrics=["exact_match"]):
        loaded = task_flags.load()
    assert loaded[0].task.metrics == ("exact_match",)
    assert selection.check_choice("exact_match", loaded) == "val_exact_match"
    with pytest.raises(flags.UsageError, match="--select must be loss, or"):
        selection.check_choice("accuracy", loaded)


@pytest.mark.any_backend
def test_a_missing_metrics_package_is_said_at_the_door(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with flagsaver.flagsaver(task=[str(files / "mine.jsonl")]):
        with pytest.raises(flags.UsageError, match=r"keras-switch\[tasks\]"):
            task_flags.check_metrics_packages(task_flags.load())


@pytest.mark.any_backend
def test_the_best_evaluation_is_found():
    history = {"val_loss": [3.0, 1.0, 2.0], "val_bleu": [1, 5, 5]}
    history["step"] = [10, 20, 30]
    best = selection.best_of(history, "val_loss")
    assert best == {"monitor": "val_loss", "value": 1.0, "step": 20}
    assert selection.best_of(history, "val_bleu")["step"] == 20


@pytest.mark.any_backend
def test_a_score_is_the_mean_over_tasks_that_have_it():
    def load(cache_dir=None):
        return tasks.Splits([], [], [])

    labels = tasks.Task("a", load, metrics=("accuracy",), classification=True)
    texts = tasks.Task("b", load, metrics=("bleu",))
    asked = [
        (labels, [tasks.Example("x", "yes"), tasks.Example("y", "no")]),
        (texts, [tasks.Example("x", "a b c d")]),
        (labels, [tasks.Example("x", "yes")]),
    ]
    scores, best = selection.make(
        "val_accuracy", asked, lambda task, its: ["yes"] * len(its), 3
    )
    logs = {}
    scores[0].set_model(types.SimpleNamespace())
    scores[0].on_epoch_end(0, logs)
    assert logs["val_accuracy"] == pytest.approx(75)
    assert (best.monitor, best.patience) == ("val_accuracy", 3)
    assert selection.make("val_loss", asked, None, 0)[0] == []


@pytest.mark.any_backend
def test_tables_are_printed(capsys):
    found = {
        "a": {
            "examples": 1000,
            "metrics": {"accuracy": 51.23},
            "baseline": "always 'x'",
            "baseline_metrics": {"accuracy": 10.0},
            "invalid": 2.0,
            "unseen_labels": ["new"],
        }
    }
    task_report.print_table(found)
    task_report.print_sizes([{"task": "a", "train": 1000, "labels": ""}])
    printed = capsys.readouterr().out
    for text in ("51.2", "10.0", "always 'x'", "1 labels were", "1,000"):
        assert text in printed


@pytest.mark.any_backend
def test_evaluate_wants_weights_and_a_tokenizer(files):
    with flagsaver.flagsaver(preset="switch_mini"):
        with pytest.raises(flags.UsageError, match="a folder with weights"):
            evaluate._check_preset()
    with flagsaver.flagsaver(preset=str(files / "start")):
        with pytest.raises(flags.UsageError, match="must have a tokenizer"):
            evaluate._load_model()


@pytest.mark.any_backend
def test_a_decoder_alone_is_saved_and_loaded(files, tmp_path):
    lm = tiny.causal_lm()
    shape = tasks.Shape(12, 4, True)
    tokenizer = tiny.causal_preprocessor().tokenizer
    task_data.save(lm, tokenizer, shape, str(tmp_path))
    assert lm.preprocessor is None
    preset = str(tmp_path / "preset")
    with flagsaver.flagsaver(preset=preset, answer_length=4):
        assert task_flags.task_class() is models.SwitchCausalLM
        model, _, found = evaluate._load_model()
    assert found == shape and model.preprocessor is None
    with flagsaver.flagsaver(preset=preset, answer_length=15):
        with pytest.raises(flags.UsageError, match="room for a prompt"):
            evaluate._load_model()
    assert os.path.isfile(tmp_path / "preset" / "manifest.json")
