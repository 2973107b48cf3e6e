"""Kills a small run of train/pretrain.py, starts it again, compares the ends.

The run is real: packing, shuffling, dropout, a schedule, evaluations, routing
metrics, checkpoints, a preset; only its plots are left out. `prepare` runs it
once unharmed and notes every point at which it can be killed: each operation
on a file of the work directory (of a file's writes the first, second, fourth,
eighth and so on, each with half of it written), and the beginning and end of
each step, evaluation batch and epoch. Operations of the thread that writes
checkpoints are counted apart from those of the main thread, which waits for
them, so that a point is the same one in every run. It does not wait in the runs
that are killed at a random moment.

Survived means: the run that was killed and started again ends with the same
weights, optimizer, seeds, history and preset, bit by bit, as the run that was
not. Told by SIGTERM instead, it exits with code 75, and no finished step is
done again.
"""

import functools
import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time

import keras
import numpy as np

from keras_switch import models, plots
from keras_switch.resume.store import CheckpointStore
from keras_switch_train import callbacks as callbacks  # before a child forks
from keras_switch_train import pretrain
from tests.faults import children
from tests.faults.runner import Case, shared
from tests.resume.points import Points

_STEPS, _EVAL_EVERY, _SAVE_EVERY = 13, 5, 3
_RANDOM_KILLS, _SIGTERMS = 50, 20
_QUICK = 2
_TIMING = ("steps_per_second", "tokens_per_second")


def prepare() -> None:
    """Writes a corpus, a preset, the unharmed run and its points."""
    _write_corpus(shared() / "text")
    children.wait(children.start(lambda: _write_preset(shared() / "start")))
    # On JAX once more before, to fill the compiler's cache: the time is taken.
    jax = keras.backend.backend() == "jax"
    for workdir in ("warm", "whole") if jax else ("whole",):
        start = time.monotonic()
        code = _start(shared() / workdir, Points())
        assert code == 0, f"the unharmed run ended with {code}"
        seconds = time.monotonic() - start
    plan = {
        "points": json.loads((shared() / "whole" / "points.json").read_text()),
        "seconds": seconds,
        "end": _end_of(shared() / "whole"),
    }
    (shared() / "plan.json").write_text(json.dumps(plan))


def cases(quick: bool) -> list[Case]:
    """Every point; 50 random moments; SIGTERM at 20 points."""
    plan = json.loads((shared() / "plan.json").read_text())
    points = [
        (thread, number, name)
        for thread, names in plan["points"].items()
        for number, name in enumerate(names)
    ]
    told = [point for point in points if point[0] == "main"]
    told = told[:: max(1, len(told) // _SIGTERMS)][:_SIGTERMS]
    moments = [random.Random(i).random() for i in range(_RANDOM_KILLS)]
    if quick:
        points = points[len(points) // (2 * _QUICK) :: len(points) // _QUICK]
        told, moments = told[_SIGTERMS // 2 :: _SIGTERMS], []
    found = [
        Case(
            f"SIGKILL, {thread} {number}: {name}",
            functools.partial(_survives_kill, (thread, number)),
            600,
        )
        for thread, number, name in points
    ]
    found += [
        Case(
            f"SIGTERM, {thread} {number}: {name}",
            functools.partial(_survives_sigterm, (thread, number)),
            600,
        )
        for thread, number, name in told
    ]
    found += [
        Case(
            f"SIGKILL after {moment * plan['seconds']:.2f} s",
            functools.partial(_survives_random_kill, moment * plan["seconds"]),
            600,
        )
        for moment in moments
    ]
    return found


def _survives_kill(point):
    code = _start(pathlib.Path("run"), Points(point, signal.SIGKILL))
    assert code == -signal.SIGKILL, f"not killed: ended with {code}"
    _ends_alike(pathlib.Path("run"))


def _survives_random_kill(seconds):
    workdir = pathlib.Path("run")
    code = _start(workdir, Points(), kill_after=seconds)
    # A run may be faster than the one that was timed.
    assert code in (-signal.SIGKILL, 0), f"ended with {code}"
    _ends_alike(workdir)


def _survives_sigterm(point):
    workdir = pathlib.Path("run")
    code = _start(workdir, Points(point, signal.SIGTERM))
    assert code == 75, f"ended with {code}"
    done = _finished_steps(workdir)
    saved = [int(p.name[5:]) for p in workdir.glob("checkpoints/step-*")]
    assert max(saved, default=0) == done, f"{done} done, {saved} saved"
    _ends_alike(workdir)


def _ends_alike(workdir):
    """Starts the run again, as a supervisor would, and looks at its end."""
    code = _start(workdir, Points())
    assert code == 0, f"started again, it ended with {code}"
    wanted = json.loads((shared() / "plan.json").read_text())["end"]
    end = _end_of(workdir)
    for part, digest in wanted.items():
        assert end[part] == digest, f"another {part}"


# === The run ===


def _start(workdir, points, kill_after=None):
    """Runs pretrain in a child; its exit code, or minus the signal."""
    timer = None

    def run():
        sys.argv = ["pretrain.py", *_flags(workdir)]
        os.environ["KERAS_SWITCH_CACHE"] = str(shared() / "cache")
        children.keep_compilations(shared() / "compiled")
        pretrain._show_routing = lambda *_: None
        if kill_after is None:
            children.wait_for_checkpoints()
        _draw_nothing()
        with points.watched(workdir):
            pretrain.run()

    def kill(pid):
        nonlocal timer
        if kill_after is not None:
            timer = threading.Timer(kill_after, os.kill, (pid, signal.SIGKILL))
            timer.start()

    pid = children.start(run)
    kill(pid)
    code = children.wait(pid)
    if timer is not None:
        timer.cancel()
    return code


def _flags(workdir):
    return (
        f"--backend={keras.backend.backend()}",
        f"--corpus={shared()}/text/*.txt",
        f"--preset={shared()}/start",
        f"--workdir={workdir}",
        "--minutes=0",
        f"--steps={_STEPS}",
        f"--eval_every={_EVAL_EVERY}",
        f"--save_every={_SAVE_EVERY}",
        "--eval_batches=1",
        "--samples=0",
        "--warmup_steps=4",
        "--input_length=16",
        "--batch_size=4",
        "--noretain_heap",
    )


def _draw_nothing():
    for name in ("plot_history", "plot_routing_history"):
        setattr(plots, name, lambda *_: None)


def _write_corpus(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
    for i in range(200):
        text = " ".join(rng.choice(words, int(rng.integers(4, 30))))
        (folder / f"{i}.txt").write_text(f"{text} number {i}.")


def _write_preset(path):
    keras.utils.set_random_seed(0)
    models.SwitchBackbone(
        vocabulary_size=420,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        num_experts=2,
        dropout=0.1,
    ).save_to_preset(str(path))


def _end_of(workdir):
    """Digests of what a run leaves, without what is a time."""
    import h5py

    newest = CheckpointStore(workdir / "checkpoints", 1).newest()
    state, preset = hashlib.sha256(), hashlib.sha256()
    for name, array in sorted(newest.arrays.items()):
        state.update(name.encode() + np.asarray(array).tobytes())
    for path in sorted((workdir / "preset").glob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(functools.partial(_digest_dataset, preset))
    content = json.loads((workdir / "history.json").read_text())
    history = {
        name: values
        for name, values in content["history"].items()
        if name not in _TIMING
    }
    rows = (workdir / "history.csv").read_text().count("\n")
    return {
        "step": newest.step,
        "state": state.hexdigest(),
        "preset": preset.hexdigest(),
        "history": history,
        "number of rows": rows,
    }


def _digest_dataset(digest, name, item):
    if hasattr(item, "shape"):  # not a group
        digest.update(name.encode() + item[()].tobytes())


def _finished_steps(workdir):
    """Steps that all starts of a run have finished."""
    path = workdir / "steps.txt"
    return path.read_text().count("\n") if path.exists() else 0
