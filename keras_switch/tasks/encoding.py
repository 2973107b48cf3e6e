"""Examples as tokens, and tokens as the arrays that a model takes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.tasks.splits import Example
from keras_switch.tasks.task import Task

# As the tokenizer's first ids; the decoder starts from padding.
_PAD = 0
# The tokenizer is given so many texts at once.
_CHUNK = 4096


class Encoded(NamedTuple):
    """The tokens of some examples.

    Args:
        inputs: int32 arrays, the prompts; with an encoder they end in `</s>`.
        targets: int32 arrays, with `</s>` where they were not cut.
        cut_inputs: how many prompts were too long and cut.
        cut_targets: how many targets were.
    """

    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    cut_inputs: int
    cut_targets: int


class Shape(NamedTuple):
    """How rows are laid out.

    Args:
        input_length: most tokens of a prompt, `</s>` or the start counted.
        answer_length: most tokens of a target, `</s>` counted.
        decoder_only: whether prompt and target share a row.
    """

    input_length: int
    answer_length: int
    decoder_only: bool = False


def encode(
    task: Task, examples: Sequence[Example], tokenizer: Any, shape: Shape
) -> Encoded:
    """Tokens of a task's examples.

    A target that is too long loses its end and `</s>`, so that a model is not
    taught to stop there.

    Args:
        task: says how inputs are put.
        examples: of it.
        tokenizer: A `SwitchTokenizer`.
        shape: how long they may be.

    Returns:
        `Encoded`.

    Raises:
        ValueError: if a length is below 2, or a label of a classification is
            too long: it could never be answered.
    """
    check_integer("input_length", shape.input_length, 2)
    check_integer("answer_length", shape.answer_length, 2)
    end = tokenizer.end_token_id
    prompts = _tokens(tokenizer, [task.prompt(e.input) for e in examples])
    answers = _tokens(tokenizer, [e.target for e in examples])
    if task.classification:
        _check_labels(examples, answers, shape)
    last = [] if shape.decoder_only else [end]
    inputs = [ids[: shape.input_length - 1] + last for ids in prompts]
    targets = [(ids + [end])[: shape.answer_length] for ids in answers]
    return Encoded(
        [np.array(ids, np.int32) for ids in inputs],
        [np.array(ids, np.int32) for ids in targets],
        sum(len(ids) >= shape.input_length for ids in prompts),
        sum(len(ids) >= shape.answer_length for ids in answers),
    )


def _tokens(tokenizer, texts):
    return [
        list(ids)
        for start in range(0, len(texts), _CHUNK)
        for ids in tokenizer(texts[start : start + _CHUNK])
    ]


def _check_labels(examples, answers, shape):
    lengths = {
        example.target: len(ids) + 1
        for example, ids in zip(examples, answers, strict=True)
    }
    if lengths and max(lengths.values()) > shape.answer_length:
        longest = max(lengths, key=lengths.get)
        raise ValueError(
            "answer_length must be at least that of the longest label, "
            f"{lengths[longest]} tokens of {longest!r}; received "
            f"{shape.answer_length}."
        )


def training_arrays(
    inputs: Sequence[np.ndarray], targets: Sequence[np.ndarray], shape: Shape
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Rows to train on, one example each.

    Args:
        inputs: prompts, as in `Encoded`.
        targets: as many.
        shape: how rows are laid out.

    Returns:
        `(x, y, sample_weight)` as `keras_switch.data.Pipeline.batch`. For a
        decoder alone a row is the prompt and the target, and only targets
        have weight.
    """
    if not shape.decoder_only:
        x = _padded("encoder_", inputs, shape.input_length)
        y, weight = _fill(targets, shape.answer_length)
        shifted = _shift_right(y, weight)
        x |= {"decoder_token_ids": shifted, "decoder_padding_mask": weight}
        return x, y, weight.astype(np.float32)
    rows = [np.concatenate(pair) for pair in zip(inputs, targets, strict=True)]
    y, mask = _fill(rows, row_length(shape))
    x = {"token_ids": _shift_right(y, mask), "padding_mask": mask}
    lengths = np.array([len(ids) for ids in inputs], np.int64)
    is_target = np.arange(y.shape[1]) >= lengths[:, None]
    return x, y, (mask * is_target).astype(np.float32)


def row_length(shape: Shape) -> int:
    """Tokens of a row of a decoder alone: the start, prompt and answer."""
    return shape.input_length + shape.answer_length


def prompt_arrays(
    inputs: Sequence[np.ndarray], shape: Shape
) -> dict[str, np.ndarray]:
    """What `generate` of a model without preprocessor is given.

    Args:
        inputs: prompts, as in `Encoded`.
        shape: how rows are laid out.

    Returns:
        A dict of the model's inputs; the last mask marks the start token and,
        for a decoder alone, the prompt.
    """
    if not shape.decoder_only:
        x = _padded("encoder_", inputs, shape.input_length)
        start = np.zeros((len(inputs), 1), np.int32)
        return x | {
            "decoder_token_ids": start,
            "decoder_padding_mask": start + 1,
        }
    started = [np.concatenate([[_PAD], ids]) for ids in inputs]
    return _padded("", started, shape.input_length)


def _padded(stack, rows, length):
    ids, mask = _fill(rows, length)
    return {f"{stack}token_ids": ids, f"{stack}padding_mask": mask}


def _fill(rows, length):
    filled, mask = np.zeros((2, len(rows), length), np.int32)
    for i, ids in enumerate(rows):
        filled[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
    return filled, mask


def _shift_right(y, mask):
    shifted = np.zeros_like(y)
    shifted[:, 1:] = y[:, :-1]
    return shifted * mask
