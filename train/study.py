r"""Switch against its dense twin at equal FLOPs of a token: the quality study.

    python train/study.py --workdir=runs/study
    python train/study.py --workdir=runs/study --arms=bound,ablations --seeds=0
    python train/study.py --workdir=runs/smoke --smoke

trains the arms of `study_arms.py` on the corpus of eight domains, one process
on each core, and writes `results.json` and the plots into --workdir. Arms with
the same seed see the same batches in the same order; nothing but what the arm
says differs. Killed, the same command goes on where it was, and arms that are
done are not trained again, so that a second command may add arms to the first.

Arms of a group: main is `dense` and `switch`; bound is a dense model as wide as
all experts together; ablations change one thing of `switch`, for
--ablation_steps, and routers put another router in its place; small_batches
read the rows of so many steps in smaller batches. The learning rate does not
depend on the number of steps, so that an ablation is compared with `switch` at
the same step.
"""

import os

from absl import flags as absl_flags

from keras_switch_train import flags, study_arms, study_jobs

_ARMS = absl_flags.DEFINE_list(
    "arms",
    ["main"],
    "Groups or names of arms: main, bound, ablations, or for instance top_2.",
)
_ABLATION_STEPS = absl_flags.DEFINE_integer(
    "ablation_steps", 1000, "Of the other arms.", lower_bound=1
)
_SMOKE_ARMS = ("dense", "switch", "top_2", "half_router")


def main() -> None:
    from keras_switch_train import study_report

    folder = flags.make_workdir()
    _prepare(folder)
    failed = study_jobs.run(_make_jobs(folder))
    study_report.write(folder)
    study_jobs.check(failed)


def run() -> None:
    """The console command."""
    absl_flags.set_default(flags.CORPUS, "domains")
    flags.run(
        main,
        uses=("backend", "corpus", "workdir", *study_jobs.NAMES),
        requires=("workdir",),
        resumes=True,
    )


def _prepare(folder):
    """Fetches the corpus and makes the vocabulary, before there are workers."""
    from keras_switch import data

    sides = data.split_documents(data.read_corpus(flags.CORPUS.value))
    study_jobs.prepare(folder, *sides, study_jobs.VOCABULARY_SIZE.value)


def _make_jobs(folder):
    """A folder with `arm.json` for each arm and seed."""
    jobs = []
    for seed in (
        study_jobs.SEEDS.value[:1]
        if study_jobs.SMOKE.value
        else study_jobs.SEEDS.value
    ):
        for name, arm in _chosen().items():
            job = os.path.join(folder, "arms", f"{name}-seed{seed}")
            wanted = study_arms.settings(arm) | _task(name, seed)
            study_jobs.write_arm(job, wanted)
            jobs.append(job)
    return jobs


def _chosen():
    if study_jobs.SMOKE.value:
        return {name: study_arms.ARMS[name] for name in _SMOKE_ARMS}
    names = []
    for entry in _ARMS.value:
        if entry not in (*study_arms.GROUPS, *study_arms.ARMS):
            raise flags.UsageError(
                f"--arms must be of {', '.join(study_arms.GROUPS)} or of "
                f"{', '.join(study_arms.ARMS)}; received {entry!r}."
            )
        names += study_arms.GROUPS.get(entry, [entry])
    return {name: study_arms.ARMS[name] for name in dict.fromkeys(names)}


def _task(name, seed):
    is_main = name in study_arms.GROUPS["main"]
    steps = study_jobs.STEPS.value if is_main else _ABLATION_STEPS.value
    every, batches = study_jobs.EVAL_EVERY.value, 32
    arm = study_arms.ARMS[name]
    if study_jobs.SMOKE.value:
        steps, every, batches = 6, 3, 1
    if steps % every:
        raise flags.UsageError(
            f"--interval must divide the steps; received {every} and {steps}."
        )
    return {
        "name": name,
        "seed": seed,
        "steps": study_arms.steps_of(arm, steps),
        "eval_every": study_arms.steps_of(arm, every),
        # As many rows for every arm.
        "eval_batches": study_arms.steps_of(arm, batches),
        "backend": flags.BACKEND.value,
        "corpus": flags.CORPUS.value,
        "vocabulary": study_jobs.VOCABULARY,
    }


if __name__ == "__main__":
    run()
