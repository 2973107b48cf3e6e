r"""The ladder of distillation: what each part of the paper's recipe keeps.

    python train/ladder.py --teacher=runs/switch_mini/preset \
        --rung_steps=1000 --workdir=runs/ladder

trains the dense student five times by distill.py on the same batches, one
process on each core:

    alone           on the text, from its own weights
    soft            on what the teacher thinks of the text
    soft, started   the same, from the teacher's weights outside its experts
    mixed, started  0.75 on the text, 0.25 on the teacher: the whole recipe
    started         on the text, from the teacher's weights: no distillation

and prints the loss of each on held-out text and the share of the teacher's gain
over the student alone that it keeps, as table 6 of the Switch paper does; with
--task, of each metric too. Killed, the same command goes on where it was, and
students that are done are not trained again.

The work directory then holds results.json, and a work directory of distill.py
for each student.
"""

import functools
import json
import os
import sys

from absl import flags as absl_flags

from keras_switch_train import (
    cores,
    distill,
    flags,
    pool,
    task_data,
    task_flags,
    training,
)

_STEPS = absl_flags.DEFINE_integer(
    "rung_steps", 1000, "Steps of every student.", lower_bound=1
)
# Each asks the same of the student but for these.
RUNGS = {
    "alone": ("--hard_weight=1", "--noinitialize"),
    "soft": ("--hard_weight=0", "--noinitialize"),
    "soft, started": ("--hard_weight=0", "--initialize"),
    "mixed, started": ("--hard_weight=0.75", "--initialize"),
    "started": ("--hard_weight=1", "--initialize"),
}
# Table 6 of the paper: -1.636 alone, -1.444 the teacher; the last is worse
# than the student alone.
PAPER = {"soft": 3, "soft, started": 20, "mixed, started": 29, "started": -2}
# What every student is told as this binary was.
_SHARED = (
    "backend",
    "batch_size",
    "corpus",
    "distill_temperature",
    "dtype",
    "eval_every",
    "held_out_batches",
    "input_length",
    "objective",
    "preset",
    "retain_heap",
    "save_every",
    "seed",
    "student_rate",
    "teacher",
    *task_data.NAMES,
    *task_flags.NAMES,
)


def main() -> None:
    _refuse_what_rungs_choose()
    folder = flags.make_workdir()
    _keep_settings(folder)
    jobs = {name: _folder(folder, name) for name in RUNGS}
    waiting = [
        functools.partial(_start, name, job)
        for name, job in jobs.items()
        if not os.path.exists(f"{job}/results.json")
    ]
    failed = pool.run(waiting, cores.ids())
    if failed:
        said = "\n".join(process.tail() for process in failed)
        raise RuntimeError(f"Every student must be trained; failed:\n{said}")
    _report(folder, jobs)


def run() -> None:
    """The console command."""
    absl_flags.set_default(flags.PRESET, "t5_mini")
    flags.run(
        main,
        uses=(*_SHARED, "workdir"),
        requires=("teacher", "workdir"),
        resumes=True,
    )


def _refuse_what_rungs_choose():
    for module in (distill, training):
        for flag in absl_flags.FLAGS.get_flags_for_module(module):
            if flag.present and flag.name not in _SHARED:
                raise flags.UsageError(
                    f"this binary does not use --{flag.name}: every student "
                    "is trained for --rung_steps, each by its own recipe."
                )


def _folder(folder, name):
    return os.path.join(folder, name.replace(", ", "_"))


def _settings():
    """The command line of every student, as this one's."""
    shared = [absl_flags.FLAGS[name] for name in _SHARED]
    given = [flag.serialize() for flag in shared if flag.value is not None]
    return [*filter(None, given), "--minutes=0", f"--steps={_STEPS.value}"]


def _keep_settings(folder):
    """Refuses a folder whose students were trained otherwise."""
    from keras_switch import files

    path = os.path.join(folder, "settings.json")
    if os.path.exists(path):
        found = files.read_json(path)["arguments"]
        if found != _settings():
            raise flags.UsageError(
                f"--workdir: the students in {folder} are those of "
                f"{' '.join(found)}. Use another folder, or delete it."
            )
        return
    with files.atomic_write(path) as file:
        content = {"arguments": _settings()}
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _start(name, job, core):
    os.makedirs(job, exist_ok=True)
    command = [sys.executable, distill.__file__, *_settings(), *RUNGS[name]]
    return pool.Process(job, [*command, f"--workdir={job}"], core)


def _report(folder, jobs):
    from keras_switch import files
    from keras_switch_train import results

    found = {
        name: files.read_json(os.path.join(job, "results.json"))
        for name, job in jobs.items()
    }
    rows = rows_of(found)
    results.show(rows)
    with files.atomic_write(os.path.join(folder, "results.json")) as file:
        content = {"rows": rows, "flags": flags.as_dict()}
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def rows_of(found: dict[str, dict]) -> list[dict]:
    """A row of the table for each measure of each student, and the teacher.

    Args:
        found: By name of the rung, what distill.py wrote to results.json.

    Returns:
        Dicts of `measure`; `student`, or `teacher`; `value`; `kept`, the share
        of the way from the student alone to the teacher in per cent, `None`
        where the teacher is not better; and `paper`, that of the paper.
    """
    names = measures(found["alone"], "student")
    rows = []
    for measure, (alone, better) in names.items():
        teacher = measures(found["alone"], "teacher")[measure][0]
        gain = better * (teacher - alone)
        for name in RUNGS:
            value = measures(found[name], "student")[measure][0]
            kept = 100 * better * (value - alone) / gain if gain > 0 else None
            rows.append(_row(measure, name, value, kept, PAPER.get(name, 0)))
        rows.append(_row(measure, "teacher", teacher, 100.0, 100))
    return rows


def measures(result: dict, model: str) -> dict[str, tuple[float, int]]:
    """What was measured of one model, and whether more (1) or less is better.

    Args:
        result: What distill.py wrote to results.json.
        model: `"student"` or `"teacher"`.
    """
    found = {"held-out loss": (result["held_out_loss"][model], -1)}
    for task, its in result.get("tasks", {}).get(model, {}).items():
        for metric, value in its["metrics"].items():
            found[f"{task}, {metric}"] = (value, 1)
    return found


def _row(measure, student, value, kept, paper):
    return {
        "measure": measure,
        "student": student,
        "value": round(value, 4),
        # Without the sign of -0.0.
        "kept": None if kept is None else round(kept, 1) + 0.0,
        "paper": paper,
    }


if __name__ == "__main__":
    run()
