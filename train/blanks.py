"""Texts with blanks, made from a text; and what a model put into them."""

from typing import NamedTuple

import numpy as np


class Blanked(NamedTuple):
    """A text with blanks, and what stood there."""

    prompt: str  # "The <extra_id_0> sat on <extra_id_1> mat."
    answers: tuple[str, ...]  # ("cat", "the")


def blank_out(
    text: str, rng: np.random.Generator, blanks: int = 3, longest: int = 3
) -> Blanked:
    """Replaces a few short spans of words by sentinels.

    Args:
        text: At least `2 * blanks + 1` words.
        rng: Draws the spans.
        blanks: How many.
        longest: Most words of a span.

    Returns:
        A `Blanked`.

    Raises:
        ValueError: If the text is too short.
    """
    words = text.split()
    if len(words) < 2 * blanks + 1:
        raise ValueError(
            f"text must have at least {2 * blanks + 1} words; received "
            f"{len(words)}."
        )
    # Each blank has a stretch of its own, whose first word stays: so blanks
    # never touch.
    edges = np.linspace(0, len(words), blanks + 1).astype(int)
    pieces, answers = [], []
    for i, (start, stop) in enumerate(zip(edges, edges[1:], strict=False)):
        length = int(rng.integers(1, min(longest, stop - start - 1) + 1))
        first = int(rng.integers(start + 1, stop - length + 1))
        answers.append(" ".join(words[first : first + length]))
        pieces += [*words[start:first], f"<extra_id_{i}>"]
        pieces += words[first + length : stop]
    return Blanked(" ".join(pieces), tuple(answers))


def describe(blanked: Blanked, answer: str) -> str:
    """A text with its blanks filled in by a model, above what stood there.

    Args:
        blanked: The text.
        answer: What the model generated for it.

    Returns:
        Two lines.
    """
    # Here, because it imports Keras.
    from keras_switch.models.fill_mask import fill_in

    truth = " ".join(
        f"<extra_id_{i}> {span}" for i, span in enumerate(blanked.answers)
    )
    model, truth = (
        fill_in(blanked.prompt, spans, mark="[{}]") for spans in (answer, truth)
    )
    return f"model: {model}\ntruth: {truth}"
