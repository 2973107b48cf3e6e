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
_SEEDS = absl_flags.DEFINE_multi_integer(
    "seeds",
    [0],
    "Seeds of weights and data; may be given several times. Each trains both "
    "arms.",
    lower_bound=0,
)
_STEPS = absl_flags.DEFINE_integer("steps", 1600, "Of each arm.", lower_bound=1)
_EVAL_EVERY = absl_flags.DEFINE_integer(
    "interval",
    200,
    "Steps between evaluations, which divides --steps.",
    lower_bound=1,
)
_VOCABULARY_SIZE = absl_flags.DEFINE_integer(
    "vocabulary_size",
    8000,
    "Pieces of the vocabulary, made from the messages.",
    lower_bound=300,
)
_SMOKE = absl_flags.DEFINE_bool(
    "smoke",
    False,
    "The whole in a minute, with few languages and steps. Shows that it runs, "
    "not what is true.",
)


def main() -> None:
    from keras_switch import data
    from keras_switch_train import multilingual_report

    jobs = _make_jobs(flags.make_workdir())
    messages = data.mediawiki_messages(_languages())
    sides = data.split_messages(messages)
    study_jobs.prepare(flags.WORKDIR.value, *sides, _VOCABULARY_SIZE.value)
    failed = study_jobs.run(jobs)
    multilingual_report.write(flags.WORKDIR.value, messages)
    study_jobs.check(failed)


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=("backend", "workdir"),
        requires=("workdir",),
        resumes=True,
    )


def _languages():
    return min(_LANGUAGES.value, 4) if _SMOKE.value else _LANGUAGES.value


def _make_jobs(folder):
    """A folder with `arm.json` for each arm and seed."""
    steps, every = (6, 3) if _SMOKE.value else (_STEPS.value, _EVAL_EVERY.value)
    if steps % every:
        raise flags.UsageError(
            f"--interval must divide --steps; received {every} and {steps}."
        )
    jobs = []
    for seed in _SEEDS.value[:1] if _SMOKE.value else _SEEDS.value:
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
                "vocabulary_size": _VOCABULARY_SIZE.value,
                "vocabulary": study_jobs.VOCABULARY,
            }
            study_jobs.write_arm(job, wanted)
            jobs.append(job)
    return jobs


if __name__ == "__main__":
    run()
