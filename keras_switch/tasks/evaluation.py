"""What a model answers, and how good that is."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.models.switch_seq_2_seq_lm_preprocessor import texts_of
from keras_switch.tasks.encoding import Shape, encode, prompt_arrays
from keras_switch.tasks.metrics import compute
from keras_switch.tasks.splits import Example, Splits
from keras_switch.tasks.task import Task


def sample(examples: Sequence[Example], most: int | None) -> list[Example]:
    """At most so many examples, the same each time.

    Args:
        examples: All of them.
        most: How many; `None` is all.

    Returns:
        Evenly spaced ones, so that whatever order they have is kept.
    """
    if most is None or most >= len(examples):
        return list(examples)
    check_integer("most", most, 1)
    places = np.linspace(0, len(examples) - 1, most).round().astype(int)
    return [examples[i] for i in places]


def predict(
    lm: keras.Model,
    task: Task,
    examples: Sequence[Example],
    tokenizer: Any,
    shape: Shape,
    batch_size: int = 32,
) -> list[str]:
    """Answers of a model, with the sampler that it was compiled with.

    Args:
        lm: A `SwitchSeq2SeqLM` or `SwitchCausalLM` without preprocessor.
        task: Says how inputs are put.
        examples: What to answer; targets are not looked at.
        tokenizer: The model's `SwitchTokenizer`.
        shape: As in training: longer prompts are cut, and answers end at
            `answer_length`.
        batch_size: Rows of a batch.

    Returns:
        As many strings, with single spaces.

    Raises:
        ValueError: if a length or the batch size is not as it must be.
        FloatingPointError: if logits are not finite.
    """
    check_integer("batch_size", batch_size, 1)
    unanswered = [Example(example.input, "") for example in examples]
    inputs = encode(task, unanswered, tokenizer, shape).inputs
    answers = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        outputs = lm.generate(
            prompt_arrays(part, shape),
            max_new_tokens=shape.answer_length,
            stop_token_ids=[tokenizer.end_token_id],
            strip_prompt=True,
            # Said by whoever loads such a model.
            allow_batch_dependent=lm.is_batch_dependent,
        )
        stack = "" if shape.decoder_only else "decoder_"
        answers += texts_of(
            outputs[f"{stack}token_ids"],
            outputs[f"{stack}padding_mask"],
            tokenizer,
        )
    return [" ".join(answer.split()) for answer in answers]


def score(
    task: Task, predictions: Sequence[str], examples: Sequence[Example]
) -> dict[str, float]:
    """A task's metrics of some answers.

    Args:
        task: The task.
        predictions: The answers.
        examples: What was asked.

    Returns:
        Per cent by metric.
    """
    targets = [example.target for example in examples]
    return compute(task.metrics, predictions, targets)


def report(
    task: Task,
    splits: Splits,
    examples: Sequence[Example],
    answer: Callable[[Sequence[Example]], list[str]],
) -> dict[str, Any]:
    """A task's metrics beside those of an answer that takes no model.

    Args:
        task: The task.
        splits: Its examples; the baseline knows the training side.
        examples: What to answer.
        answer: Answers them.

    Returns:
        A dict for JSON: `examples`, how many; `metrics`; `baseline`, what it
        does, and `baseline_metrics`; of a classification, `invalid`, per cent
        of the answers that are no label of the training side, and
        `unseen_labels`, those of the examples that are none either.
    """
    predictions = answer(examples)
    baseline, baseline_predictions = baseline_of(task, splits, examples)
    found = {
        "examples": len(examples),
        "metrics": score(task, predictions, examples),
        "baseline": baseline,
        "baseline_metrics": score(task, baseline_predictions, examples),
        "digest": splits.digest(),
    }
    if task.classification:
        known = {example.target for example in splits.train}
        wrong = sum(prediction not in known for prediction in predictions)
        found["invalid"] = 100 * wrong / len(predictions)
        targets = {example.target for example in examples}
        found["unseen_labels"] = sorted(targets - known)
    return found


def baseline_of(
    task: Task, splits: Splits, examples: Sequence[Example]
) -> tuple[str, list[str]]:
    """What can be answered without a model.

    Args:
        task: The task.
        splits: Its examples.
        examples: What to answer.

    Returns:
        What it does, and the answers: the commonest label of a
        classification; otherwise the first words of the input, as many as the
        median target of the training side has.
    """
    if task.classification:
        counts = collections.Counter(e.target for e in splits.train)
        # Of equally common ones the first by name.
        label = min(counts, key=lambda name: (-counts[name], name))
        return f"always {label!r}", [label] * len(examples)
    lengths = sorted(len(e.target.split()) for e in splits.train)
    words = lengths[len(lengths) // 2]
    leads = [" ".join(e.input.split()[:words]) for e in examples]
    return f"the first {words} words", leads
