"""Which label a decoder alone finds likeliest behind a few examples."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_switch.data.checks import check_integer
from keras_switch.data.seeding import SHUFFLE, random_generator
from keras_switch.tasks.encoding import Shape, training_arrays
from keras_switch.tasks.splits import Example
from keras_switch.tasks.task import Task

_ANSWER = "answer:"


def few_shot(
    lm: keras.Model,
    task: Task,
    train: Sequence[Example],
    examples: Sequence[Example],
    tokenizer: Any,
    length: int,
    shots: int = 4,
    seed: int = 0,
    batch_size: int = 32,
) -> list[str]:
    """Answers of a model that was not fine-tuned, by log-likelihood.

    A prompt is `shots` examples of the training side with their labels, the
    same for all that is asked, then the example in question. Each label is
    put behind it; the answer is the one whose tokens have the highest mean
    log-probability. Nothing is generated, so that an answer is always a label.

    Args:
        lm: A `SwitchCausalLM` without preprocessor.
        task: A classification.
        train: Where the shots and the labels come from.
        examples: What to answer; targets are not looked at.
        tokenizer: The model's `SwitchTokenizer`.
        length: Most tokens of a prompt and a label. Every input of the prompt
            is cut to an equal part of the room.
        shots: How many examples; 0 is none.
        seed: Which examples.
        batch_size: Rows of a batch; a row is an example and a label.

    Returns:
        As many labels.

    Raises:
        ValueError: if the task is no classification, there are fewer examples
            than shots, or no room for them.

    Reference:
        [GPT-3 (Brown et al., 2020)](https://arxiv.org/abs/2005.14165), section
        2.4, likelihood per token.
    """
    check_integer("shots", shots, 0)
    check_integer("batch_size", batch_size, 1)
    if not task.classification or shots > len(train):
        raise ValueError(
            "few_shot must be given a classification with at least as many "
            f"examples to train on as shots; received {task.name!r} with "
            f"{len(train)}, and shots={shots}."
        )
    labels = sorted({example.target for example in train})
    ids = {label: list(tokenizer([label])[0]) for label in labels}
    chosen = _choose(train, shots, seed)
    room = _room(ids, chosen, tokenizer, length)
    start = [
        token
        for example in chosen
        for token in [
            *_ask(task, example.input, tokenizer, room),
            *ids[example.target],
        ]
    ]
    longest = max(map(len, ids.values()))
    shape = Shape(length - longest, longest, decoder_only=True)
    rows = [
        (np.array(start + asked, np.int32), np.array(ids[label], np.int32))
        for example in examples
        for asked in [_ask(task, example.input, tokenizer, room)]
        for label in labels
    ]
    scores = np.concatenate(
        [
            _scores(lm, rows[first : first + batch_size], shape, batch_size)
            for first in range(0, len(rows), batch_size)
        ]
    )
    best = scores.reshape(len(examples), len(labels)).argmax(axis=1)
    return [labels[i] for i in best]


def _choose(train, shots, seed):
    keys = random_generator(seed, SHUFFLE, 0).random(len(train))
    return [train[i] for i in np.argsort(keys, kind="stable")[:shots]]


def _ask(task, text, tokenizer, room):
    ids = list(tokenizer([task.prompt(text)])[0])[:room]
    return ids + list(tokenizer([_ANSWER])[0])


def _room(ids, chosen, tokenizer, length):
    """Tokens of each input: what the rest leaves, in equal parts."""
    asks = len(chosen) + 1
    rest = asks * len(tokenizer([_ANSWER])[0]) + 1
    rest += sum(len(ids[example.target]) for example in chosen)
    rest += max(map(len, ids.values()))
    room = (length - rest) // asks
    if room < 1:
        raise ValueError(
            f"length must leave room for {asks} inputs beside {rest} other "
            f"tokens; received {length}. Take fewer shots."
        )
    return room


def _scores(lm, rows, shape, batch_size):
    """Mean log-probabilities of the labels of some rows."""
    nothing = (np.zeros(1, np.int32), np.zeros(1, np.int32))
    # One shape for all, so that one is compiled.
    padded = [*rows, *[nothing] * (batch_size - len(rows))]
    inputs, targets = zip(*padded, strict=True)
    x, y, weight = training_arrays(inputs, targets, shape)
    logits = lm.predict_on_batch(x)
    logs = ops.take_along_axis(
        ops.log_softmax(ops.convert_to_tensor(logits), axis=-1),
        ops.convert_to_tensor(y[..., None]),
        axis=-1,
    )
    logs = ops.convert_to_numpy(logs)[..., 0]  # [B, T]
    means = (logs * weight).sum(axis=1) / weight.sum(axis=1)
    return means[: len(rows)]
