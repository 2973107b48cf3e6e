"""Kills one of two processes that train together, and starts both again.

Two processes of JAX, a device each, share the experts of a small model and
write their checkpoints together. `prepare` runs them once unharmed, and notes
the points of each as `kill` does. The one that is left is killed a moment
later, as a supervisor would; it may be waiting for the other, or not have
noticed.

Survived means: started again, they go on from the last checkpoint that was
whole, no checkpoint is damaged, and they end with the same state, bit by bit,
as the run that was not killed. Where the disk of one of them is full, both end
with an error that says whose, and what was there before is untouched.
"""

import functools
import hashlib
import json
import pathlib
import resource
import signal
import socket
import warnings

import keras
import numpy as np

from keras_switch.resume import ResumableCheckpoint
from keras_switch.resume.store import CheckpointStore
from tests.faults import children
from tests.faults.runner import Case, shared
from tests.mesh import checkpoints, training
from tests.resume.points import Points

_PROCESSES, _STEPS, _SAVE_EVERY = 2, 4, 2
# Seconds from the end of one process to that of the other, which may end first.
_GRACE, _TIME_TO_FAIL = 0.5, 60
_TOGETHER = range(_PROCESSES)
_FULL = (0, 1, 1000, 20_000)


def prepare() -> None:
    """The unharmed run; once more before, for what XLA compiles."""
    if keras.backend.backend() != "jax":
        raise RuntimeError("kill_together needs KERAS_BACKEND=jax")
    for name in ("warm", "whole"):
        codes = _start(shared() / name, [Points(label=i) for i in _TOGETHER])
        assert codes == [0, 0], f"the unharmed run ended with {codes}"
    plan = {
        "points": [_read(shared() / "whole", i) for i in _TOGETHER],
        "end": _end_of(shared() / "whole"),
    }
    (shared() / "plan.json").write_text(json.dumps(plan))


def cases(quick: bool) -> list[Case]:
    """Every point of both writers in the second checkpoint, and some others."""
    plan = json.loads((shared() / "plan.json").read_text())
    found = [
        Case(
            f"SIGKILL of {index}, {thread} {number}: {name}",
            functools.partial(_survives_kill, index, (thread, number)),
            300,
        )
        for index, threads in enumerate(plan["points"])
        for thread, names in threads.items()
        for number, name in enumerate(names)
        if number % 4 == 1 or (thread == "writer" and number * 2 >= len(names))
    ]
    if quick:
        found = found[len(found) // 4 :: len(found) // 2]
    return found + [
        Case(
            f"the disk of {index} is full after {size} bytes of its file",
            functools.partial(_survives_full_disk, index, size),
            300,
        )
        for index in _TOGETHER
        for size in (_FULL[-1:] if quick else _FULL)
    ]


def _survives_kill(killed, point):
    points = [
        Points(point if index == killed else None, signal.SIGKILL, index)
        for index in _TOGETHER
    ]
    codes = _start(pathlib.Path("run"), points)
    assert codes[killed] == -signal.SIGKILL, f"not killed: ended with {codes}"
    _end_alike(pathlib.Path("run"))


def _survives_full_disk(index, size):
    workdir = pathlib.Path("run")
    points = [Points(label=i) for i in _TOGETHER]
    said = _start(workdir, points, full=(index, size))
    assert 0 not in said, f"a process did not fail: {said}"
    left = [path.name for path in (workdir / "checkpoints").iterdir()]
    left = [name for name in left if not name.startswith(".partial")]
    assert left == [f"step-{_SAVE_EVERY:09d}"], f"{left} are left"
    error = (workdir / "0error.txt").read_text()
    wanted = "process 1 could not write its part" if index else "too large"
    assert wanted in error, error
    _end_alike(workdir)


def _end_alike(workdir):
    """Starts both again, and looks at where they go on and end."""
    steps = workdir / "0steps.txt"
    steps.unlink(missing_ok=True)
    saved = [int(p.name[5:]) for p in workdir.glob("checkpoints/step-*")]
    codes = _start(workdir, [Points(label=i) for i in _TOGETHER])
    assert codes == [0, 0], f"started again, they ended with {codes}"
    done = steps.read_text().count("\n") if steps.exists() else 0
    first = max(saved, default=0)
    assert first + done == _STEPS, f"{first} saved, then {done} steps done"
    assert not list(workdir.glob("checkpoints/damaged-*"))
    wanted = json.loads((shared() / "plan.json").read_text())["end"]
    assert _end_of(workdir) == wanted, "another state"


# === The run ===


def _start(workdir, points, full=(None, 0)):
    """Runs both to the end of one, and ends the other; their exit codes."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        where = f"localhost:{listener.getsockname()[1]}"
    pids = [
        children.start(
            functools.partial(
                _train,
                workdir,
                index,
                where,
                points[index],
                full[1] if index == full[0] else None,
            )
        )
        for index in _TOGETHER
    ]
    grace = _GRACE if full[0] is None else _TIME_TO_FAIL
    return children.wait_together(pids, grace)


def _train(workdir, index, where, points, full):
    import jax

    children.keep_compilations(shared() / "compiled")
    children.wait_for_checkpoints()
    jax.config.update("jax_num_cpu_devices", 1)
    keras.utils.set_random_seed(0)
    keras.distribution.initialize(where, _PROCESSES, index)
    training.spread([_PROCESSES, 1])
    from keras_switch import data

    # Before either: or who comes first would have other points.
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    batches = data.Share(checkpoints.Batches(), index, _PROCESSES)
    if full is not None:
        _fill_disk(full)
    lm = training.make()
    checkpoint = ResumableCheckpoint(
        workdir / "checkpoints", data=batches, save_every=_SAVE_EVERY
    )
    try:
        with points.watched(workdir):
            lm.fit(
                checkpoint.dataset(),
                epochs=1,
                steps_per_epoch=_STEPS,
                callbacks=[checkpoint],
                verbose=0,
            )
    except OSError as error:
        (workdir / f"{index}error.txt").write_text(str(error))
        raise


def _fill_disk(size):
    """From the second checkpoint on no file may be larger than `size`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write, calls = CheckpointStore.write, []

    def limited(*arguments, **named):
        calls.append(1)
        if len(calls) == 1:
            return write(*arguments, **named)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            return write(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    CheckpointStore.write = limited


def _read(workdir, index):
    return json.loads((workdir / f"{index}points.json").read_text())


def _end_of(workdir):
    """Step and digest of the newest checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = CheckpointStore(workdir / "checkpoints", 1).newest()
    digest = hashlib.sha256()
    for name, array in sorted(newest.arrays.items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return [newest.step, digest.hexdigest()]
