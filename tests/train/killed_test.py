"""Fine-tuning and distillation that were killed end with the same bits."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_switch.resume.store import CheckpointStore
from tests.models import tiny

# Between two checkpoints and two evaluations, the best of which is behind it.
STEP = 7
# A checkpoint is written while training goes on, and a small model's steps
# may all be done before a slow disk has it.
RUN = """
import os, pathlib, signal, sys, time
from absl import flags
from keras_switch_train import callbacks, {binary}
end = callbacks.StopAfter.on_train_batch_end
def end_or_die(limit, *args, **kwargs):
    end(limit, *args, **kwargs)
    if limit.done == {step}:
        checkpoints = pathlib.Path(flags.FLAGS.workdir, "checkpoints")
        late = time.monotonic() + 60
        while not list(checkpoints.glob("step*")) and time.monotonic() < late:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.StopAfter.on_train_batch_end = end_or_die
sys.argv[0] = "{binary}.py"
{binary}.run()
"""
TIMING = ("steps_per_second", "tokens_per_second")
pytestmark = [pytest.mark.slow, pytest.mark.any_backend]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    tiny.lm(tiny.preprocessor()).save_to_preset(str(folder / "sparse"))
    dense = {"encoder_sparse_step": 0, "decoder_sparse_step": 0}
    tiny.backbone(**dense).save_to_preset(str(folder / "dense"))
    lines = [
        json.dumps({"input": f"the {word} walks {i}", "target": word})
        for i in range(20)
        for word in ("dog", "man", "moon")
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder


def start(binary, folder, workdir, kill_after=None):
    """Its exit code, or minus the signal, and what it said."""
    presets = {
        "finetune": [f"--preset={folder}/sparse"],
        "distill": [f"--preset={folder}/dense", f"--teacher={folder}/sparse"],
    }
    code = RUN.format(binary=binary, step=kill_after)
    done = subprocess.run(
        [sys.executable, "-c", code, *presets[binary]]
        + [f"--task={folder}/mine.jsonl", f"--workdir={workdir}"]
        + ["--minutes=0", "--steps=10", "--eval_every=4", "--save_every=3"]
        + ["--batch_size=4", "--input_length=16", "--answer_length=8"]
        + ["--test_examples=4", "--validation_examples=4"],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": keras.backend.backend()},
    )
    return done.returncode, done.stderr


def end_of(workdir):
    """What a run leaves, without times and the name of its folder."""
    results = json.loads((workdir / "results.json").read_text())
    del results["flags"]
    history = json.loads((workdir / "history.json").read_text())["history"]
    rows = (workdir / "history.csv").read_text().count("\n")
    untimed = {n: values for n, values in history.items() if n not in TIMING}
    newest = CheckpointStore(workdir / "checkpoints", 1).newest()
    return newest.step, newest.arrays, untimed, results, rows


@pytest.mark.parametrize("binary", ["finetune", "distill"])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    binary, folder, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, said = start(binary, folder, whole)
    assert code == 0, said
    code, said = start(binary, folder, killed, kill_after=STEP)
    assert code == -signal.SIGKILL, said
    code, said = start(binary, folder, killed)
    assert code == 0 and "resumed at step" in said, said
    (step, wanted, *others), (found_step, found, *found_others) = (
        end_of(workdir) for workdir in (whole, killed)
    )
    assert found_step == step == 10
    assert found_others == others
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    weights = [
        next((workdir / "preset").glob("*.h5")).read_bytes()
        for workdir in (whole, killed)
    ]
    assert weights[0] == weights[1]
