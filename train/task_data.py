"""Batches, answers and scores of tasks, for the binaries that train on them."""

import math
import os
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags
from absl import logging

from keras_switch_train import flags, task_flags

MIXING_TEMPERATURE = absl_flags.DEFINE_float(
    "mixing_temperature",
    1.0,
    "Of several tasks, each is taken by its examples to the power of one over "
    "this; the higher, the more equally.",
)
VALIDATION_EXAMPLES = absl_flags.DEFINE_integer(
    "validation_examples",
    256,
    "Most validation examples of a task in an evaluation; 0: all.",
    lower_bound=0,
)

# For `uses` of a binary that trains on tasks.
NAMES = ("mixing_temperature", "validation_examples")

absl_flags.register_validator(
    "mixing_temperature",
    lambda value: 1 <= value < math.inf,
    "must be at least 1.",
)


def shape_of(model: Any) -> Any:
    """The lengths that the flags ask for."""
    from keras_switch import models, tasks

    return tasks.Shape(
        flags.INPUT_LENGTH.value,
        task_flags.ANSWER_LENGTH.value or task_flags.DEFAULT_ANSWER_LENGTH,
        isinstance(model, models.SwitchCausalLM),
    )


def make_data(
    loaded: list[task_flags.Loaded], tokenizer: Any, shape: Any
) -> tuple[Any, Any, list]:
    """Training batches, the held-out set, and what is asked in between."""
    from keras_switch import tasks

    most = VALIDATION_EXAMPLES.value or None
    asked, train, held_out = [], [], []
    for task, splits in loaded:
        examples = tasks.sample(splits.validation, most)
        asked.append((task, examples))
        with flags.blame("answer_length"):
            train.append(tasks.encode(task, splits.train, tokenizer, shape))
            held_out.append(tasks.encode(task, examples, tokenizer, shape))
        task_flags.log_cuts(task.name, train[-1])
    batches = tasks.TaskBatches(
        train,
        shape,
        flags.BATCH_SIZE.value,
        flags.SEED.value,
        MIXING_TEMPERATURE.value,
    )
    return (
        batches,
        tasks.TaskHeldOut(held_out, shape, flags.BATCH_SIZE.value),
        asked,
    )


def answerer(
    model: Any, tokenizer: Any, shape: Any
) -> Callable[[Any, list], list[str]]:
    """Answers a task's examples by the model."""
    from keras_switch import tasks

    def answer(task, examples):
        return tasks.predict(
            model, task, examples, tokenizer, shape, flags.BATCH_SIZE.value
        )

    return answer


def save(model: Any, tokenizer: Any, shape: Any, workdir: str) -> None:
    """Writes the preset, which cuts texts as training did."""
    lengths = {
        "encoder_sequence_length": shape.input_length,
        # The start is counted here, and is no part of the answer.
        "decoder_sequence_length": shape.answer_length + 1,
    }
    if shape.decoder_only:
        length = shape.input_length + shape.answer_length
        lengths = {"sequence_length": length}
    model.preprocessor = model.preprocessor_cls(tokenizer, **lengths)
    path = os.path.join(workdir, "preset")
    model.save_to_preset(path)
    model.preprocessor = None
    logging.info("saved %s", path)


def measure(
    loaded: list[task_flags.Loaded], answer: Callable
) -> dict[str, Any]:
    """Scores on the test sides, which it prints."""
    from keras_switch import tasks
    from keras_switch_train import task_report

    found = {}
    for task, splits in loaded:
        examples = task_flags.test_examples(splits)
        found[task.name] = tasks.report(
            task, splits, examples, lambda asked, task=task: answer(task, asked)
        )
    task_report.print_table(found)
    return found
