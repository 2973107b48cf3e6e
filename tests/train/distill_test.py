"""Distillation by command: on a corpus and on a task, stopped and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_switch import models
from tests.mesh import processes
from tests.models import tiny

TRAIN = Path(__file__).resolve().parents[2] / "train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sparse teacher, its dense twin, a corpus and a task."""
    folder = tmp_path_factory.mktemp("distill")
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    teacher = tiny.lm(tiny.preprocessor(), encoder_sparse_step=1, **layers)
    teacher.save_to_preset(str(folder / "teacher"))
    dense = {"encoder_sparse_step": 0, "decoder_sparse_step": 0, **layers}
    tiny.backbone(**dense).save_to_preset(str(folder / "dense"))
    tiny.backbone(**dense, vocabulary_size=160).save_to_preset(
        str(folder / "other")
    )
    (folder / "text").mkdir()
    for i in range(40):
        text = " ".join(np.random.default_rng(i).permutation(tiny.TEXTS))
        (folder / "text" / f"{i}.txt").write_text(text)
    lines = [
        json.dumps({"input": f"the {word} walks {i}", "target": word})
        for i in range(20)
        for word in ("dog", "man", "moon")
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder


def command(folder, workdir, *arguments):
    command = [sys.executable, str(TRAIN / "distill.py")]
    command += [f"--backend={keras.backend.backend()}", "--minutes=0"]
    command += [f"--teacher={folder}/teacher", "--batch_size=4"]
    command += [f"--preset={folder}/dense", f"--workdir={workdir}"]
    return [*command, "--eval_every=2", "--input_length=16", *arguments]


def distill(folder, workdir, *arguments, code=0):
    arguments = command(folder, workdir, *arguments)
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.any_backend
def test_on_a_corpus(folder, tmp_path):
    corpus = f"--corpus={folder}/text/*.txt"
    distill(folder, tmp_path, corpus, "--steps=4")
    found = results(tmp_path)
    student = models.SwitchSeq2SeqLM.from_preset(str(tmp_path / "preset"))
    assert isinstance(student.generate("a dog", max_length=4), str)
    assert found["parameters"]["teacher"] > found["parameters"]["student"]
    history = json.loads((tmp_path / "history.json").read_text())["history"]
    assert history["step"] == [2, 4]
    assert {"hard_loss", "soft_loss", "val_hard_loss"} <= set(history)
    # The text's own loss, by the same weights.
    assert found["held_out_loss"]["student"] == pytest.approx(
        history["val_hard_loss"][-1], rel=1e-4
    )
    # At its end already: it measures the weights of its checkpoint.
    said = distill(folder, tmp_path, corpus, "--steps=4")
    assert "nothing is left to do" in said
    again = results(tmp_path)["held_out_loss"]
    assert again == pytest.approx(found["held_out_loss"], rel=1e-5)


@pytest.mark.any_backend
def test_on_a_task(folder, tmp_path):
    distill(
        folder,
        tmp_path,
        f"--task={folder}/mine.jsonl",
        "--steps=2",
        "--answer_length=8",
        "--test_examples=4",
    )
    found = results(tmp_path)
    assert set(found["tasks"]) == {"teacher", "student"}
    models.SwitchSeq2SeqLM.from_preset(str(tmp_path / "preset"))


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="a mesh needs JAX here"
)
def test_a_mesh_distils_what_one_device_does(folder, tmp_path):
    """By a teacher whose experts lie on several devices, and are frozen."""
    arguments = [f"--corpus={folder}/text/*.txt", "--steps=4"]
    running = []
    for name, more in (("alone", []), ("mesh", ["--mesh=batch:2,model:2"])):
        run = command(folder, tmp_path / name, *arguments, *more)
        running.append(processes.run(run, devices=4 if more else 1))
    for process in running:
        processes.finish(process)
    found = []
    for name in ("alone", "mesh"):
        text = (tmp_path / name / "history.json").read_text()
        history = json.loads(text)["history"]
        losses = results(tmp_path / name)["held_out_loss"]
        preset = str(tmp_path / name / "preset")
        lm = models.SwitchSeq2SeqLM.from_preset(preset)
        found.append(
            [
                *(history[n] for n in ("loss", "soft_loss", "val_hard_loss")),
                *(losses[n] for n in ("teacher", "student")),
                *lm.get_weights(),
            ]
        )
    for alone, mesh in zip(*found, strict=True):
        np.testing.assert_allclose(mesh, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "argument, said",
    [
        ("--teacher=nowhere", "--teacher: preset must be a folder"),
        ("--preset={folder}/other", "--preset: the student must have the tea"),
        ("--hard_weight=2", "hard_weight"),
    ],
)
def test_bad_flags_are_refused(argument, said, folder, tmp_path):
    argument = argument.format(folder=folder)
    assert said in distill(folder, tmp_path, argument, "--steps=1", code=2)
