r"""Measures a model on tasks.

    python train/evaluate.py --preset=runs/section/preset --task=debian_section

generates answers to test examples of each task, greedily, prints its metrics
beside those of an answer that takes no model (the commonest label, or the
first words of the input), and writes them to --results. The test side is the
one that finetune never trains on.

    --sizes                       print what the examples of tasks are like
    --test_examples=0             all of them
    --task=mine.jsonl             your own: lines with "input" and "target"
    --shots=4                     of a decoder alone that was not fine-tuned:
                                  which label is likeliest behind 4 examples
    --timed_examples=50           also how long an answer takes, one at a time,
                                  and how large the preset is
    --saved_model=served/1        answer by a SavedModel of the preset, as
                                  TensorFlow Serving would
"""

import json
import os

from absl import flags as absl_flags
from absl import logging

from keras_switch_train import flags, task_flags

_RESULTS = absl_flags.DEFINE_string(
    "results", None, "JSON file to write the metrics to. Default: none."
)
_SIZES = absl_flags.DEFINE_bool(
    "sizes", False, "Print what the examples are like, and measure nothing."
)
_SHOTS = absl_flags.DEFINE_integer(
    "shots",
    None,
    "Of a decoder alone: score every label behind a prompt with so many "
    "training examples, instead of generating. --seed chooses them.",
    lower_bound=0,
)
_TIMED = absl_flags.DEFINE_integer(
    "timed_examples",
    0,
    "Answer so many test examples of each task one at a time, and print how "
    "long that takes, and how large the preset or SavedModel is.",
    lower_bound=0,
)
_SAVED_MODEL = absl_flags.DEFINE_string(
    "saved_model",
    None,
    "Folder of a SavedModel of --preset, which then gives the tokenizer alone.",
)


def main() -> None:
    # Tasks.
    loaded = task_flags.load()
    from keras_switch_train import task_report

    if _SIZES.value:
        _print_sizes(loaded)
        return
    task_flags.check_metrics_packages(loaded)
    _check_preset()

    # Model.
    asked = _load_model()

    # Measure.
    found = {}
    for task, splits in loaded:
        examples = task_flags.test_examples(splits)
        logging.info("%s: %d examples", task.name, len(examples))
        found[task.name] = _measure(task, splits, examples, *asked)
    task_report.print_table(found)
    if _TIMED.value:
        task_report.print_costs(found)
    if _RESULTS.value:
        _write(found)


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "dtype",
            "preset",
            "retain_heap",
            "seed",
            *task_flags.NAMES,
        ),
    )


def _print_sizes(loaded):
    from keras_switch import tasks
    from keras_switch_train import task_report

    task_report.print_sizes([tasks.describe(*pair) for pair in loaded])


def _check_preset():
    preset = flags.PRESET.value
    if "://" not in preset and not os.path.isdir(preset):
        raise flags.UsageError(
            "--preset must be a folder with weights, as finetune and pretrain "
            f"write; received {preset!r}."
        )


def _load_model():
    """A model without preprocessor, its tokenizer, and its rows."""
    from keras_switch import models, tasks

    cls = task_flags.task_class()
    with flags.blame("preset"):
        lm = cls.from_preset(flags.PRESET.value, dtype=flags.DTYPE.value)
    packer = lm.preprocessor
    if packer is None:
        raise flags.UsageError(
            "--preset must have a tokenizer; it holds a model alone."
        )
    answer = task_flags.ANSWER_LENGTH.value
    if cls is models.SwitchCausalLM:
        answer = answer or task_flags.DEFAULT_ANSWER_LENGTH
        shape = tasks.Shape(packer.sequence_length - answer, answer, True)
        if shape.input_length < 2:
            raise flags.UsageError(
                "--answer_length must leave room for a prompt in the preset's "
                f"{packer.sequence_length} tokens; received {answer}."
            )
    else:
        # The start is counted there, and is no part of the answer.
        answer = answer or max(2, packer.decoder_sequence_length - 1)
        shape = tasks.Shape(packer.encoder_sequence_length, answer)
    if _SHOTS.value is not None and not shape.decoder_only:
        raise flags.UsageError(
            "--shots needs a preset of a decoder alone; received "
            f"{flags.PRESET.value!r}."
        )
    if lm.is_batch_dependent:
        logging.warning(
            "experts have a capacity in evaluation: what is answered depends "
            "on --batch_size"
        )
    if _SAVED_MODEL.value:
        if _SHOTS.value is not None:
            raise flags.UsageError(
                "--saved_model generates, and cannot score the labels of "
                "--shots; leave one of them out."
            )
        from keras_switch_train import served

        with flags.blame("saved_model"):
            model = served.ServedModel(_SAVED_MODEL.value)
        return model, packer.tokenizer, shape
    model = cls(lm.backbone, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=flags.jit_compile())
    return model, packer.tokenizer, shape


def _measure(task, splits, examples, model, tokenizer, shape):
    from keras_switch import tasks

    def answer(asked, size=flags.BATCH_SIZE.value):
        if _SHOTS.value is None:
            return tasks.predict(model, task, asked, tokenizer, shape, size)
        return tasks.few_shot(
            model,
            task,
            splits.train,
            asked,
            tokenizer,
            shape.input_length + shape.answer_length,
            _SHOTS.value,
            flags.SEED.value,
            size,
        )

    try:
        with flags.blame("task" if _SHOTS.value is None else "shots"):
            found = tasks.report(task, splits, examples, answer)
    except FloatingPointError as error:
        raise flags.UsageError(f"--preset: {error}") from error
    if _TIMED.value:
        found["cost"] = _cost(examples, lambda asked: answer(asked, 1))
    return found


def _cost(examples, answer):
    from keras_switch import tasks
    from keras_switch.models.presets import find_preset
    from keras_switch_train import answer_cost

    folder = _SAVED_MODEL.value or find_preset(flags.PRESET.value).folder
    return {
        "megabytes": answer_cost.folder_bytes(folder) / 1e6,
        **answer_cost.latency(answer, tasks.sample(examples, _TIMED.value)),
    }


def _write(found):
    from keras_switch import files

    path = _RESULTS.value
    content = {"tasks": found, "flags": flags.as_dict()}
    with flags.blame("results"), files.atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    logging.info("metrics are in %s", path)


if __name__ == "__main__":
    run()
