r"""Switch against its dense twin on 101 languages at once.

    python train/multilingual.py --workdir=runs/multilingual
    python train/multilingual.py --workdir=runs/smoke --smoke

trains the two main arms of `study.py` on MediaWiki's messages, one process on
each core, and writes `results.json`, `languages.md` and plots into --workdir:
for each language the held-out loss of both, how many times fewer steps `switch`
needs to the last loss of `dense`, and whether the experts specialise by
language. Rows are drawn by language with a temperature. Messages are held out
by key, in all languages at once, so that no translation of a held-out message
is trained on.

Killed, the same command goes on where it was; arms that are done are not
trained again. apt fetches the messages the first time.
"""

import os

from absl import flags as absl_flags

from keras_switch_train import flags, study_arms, study_jobs

_LANGUAGES = absl_flags.DEFINE_integer(
    "languages",
    101,
    "Those with the most messages. The paper has 101.",
    lower_bound=1,
)
_TEMPERATURE = absl_flags.DEFINE_float(
    "temperature",
    1 / 0.3,
    "A language's share of the rows is its size to the power of 1 / "
    "temperature; mT5's power is 0.3.",
    lower_bound=1.0,
)


def main() -> None:
    from keras_switch import data
    from keras_switch_train import multilingual_report

    jobs = _make_jobs(flags.make_workdir())
    messages = data.mediawiki_messages(_languages())
    sides = data.split_messages(messages)
    study_jobs.prepare(
        flags.WORKDIR.value, *sides, study_jobs.VOCABULARY_SIZE.value
    )
    failed = study_jobs.run(jobs)
    multilingual_report.write(flags.WORKDIR.value, messages)
    study_jobs.check(failed)


def run() -> None:
    """The console command."""
    for flag, value in (
        (study_jobs.EVAL_EVERY, 200),
        (study_jobs.STEPS, 1600),
        (study_jobs.SEEDS, [0]),
        (study_jobs.VOCABULARY_SIZE, 8000),
    ):
        absl_flags.set_default(flag, value)
    flags.run(
        main,
        uses=("backend", "workdir", *study_jobs.NAMES),
        requires=("workdir",),
        resumes=True,
    )


def _languages():
    return (
        min(_LANGUAGES.value, 4) if study_jobs.SMOKE.value else _LANGUAGES.value
    )


def _make_jobs(folder):
    """A folder with `arm.json` for each arm and seed."""
    steps, every = (
        (6, 3)
        if study_jobs.SMOKE.value
        else (study_jobs.STEPS.value, study_jobs.EVAL_EVERY.value)
    )
    if steps % every:
        raise flags.UsageError(
            f"--interval must divide --main_steps; received {every} and "
            f"{steps}."
        )
    jobs = []
    for seed in (
        study_jobs.SEEDS.value[:1]
        if study_jobs.SMOKE.value
        else study_jobs.SEEDS.value
    ):
        for name in study_arms.GROUPS["main"]:
            job = os.path.join(folder, "arms", f"{name}-seed{seed}")
            wanted = study_arms.settings(study_arms.ARMS[name]) | {
                "name": name,
                "seed": seed,
                "steps": steps,
                "eval_every": every,
                # Of all languages together, and of each.
                "eval_batches": 1,
                "backend": flags.BACKEND.value,
                "languages": _languages(),
                "pipeline": {
                    "packing": "none",
                    "temperature": _TEMPERATURE.value,
                },
                "vocabulary_size": study_jobs.VOCABULARY_SIZE.value,
                "vocabulary": study_jobs.VOCABULARY,
            }
            study_jobs.write_arm(job, wanted)
            jobs.append(job)
    return jobs


if __name__ == "__main__":
    run()
