"""Texts with blanks, and what a model puts into them."""

import re
from typing import Any

from keras_switch.models.generation_inputs import check_strings

_SENTINEL = re.compile(r"<extra_id_([0-9]+)>")


def fill_blanks(
    lm: Any, texts: Any, missing: str = "...", **kwargs: Any
) -> str | list[str]:
    """See `SwitchSeq2SeqLM.fill_mask`, which this is."""
    if lm.preprocessor is None:
        raise ValueError(
            "fill_mask must have a preprocessor; received preprocessor=None."
        )
    texts, is_scalar = check_strings("texts", texts)
    texts = [number_blanks(text) for text in texts]
    _check_sentinels(texts, lm.preprocessor.tokenizer)
    has_blanks = [_SENTINEL.search(text) is not None for text in texts]
    asked = [text for text, has in zip(texts, has_blanks, strict=True) if has]
    answers = iter(lm.generate(asked, **kwargs))
    filled = [
        fill_in(text, next(answers), missing=missing) if has else text
        for text, has in zip(texts, has_blanks, strict=True)
    ]
    return filled[0] if is_scalar else filled


def number_blanks(text: str) -> str:
    """Numbers sentinels from 0 in the order they stand in."""
    first, *others = _SENTINEL.split(text)[::2]
    numbered = [f"<extra_id_{i}>{piece}" for i, piece in enumerate(others)]
    return "".join([first, *numbered])


def _check_sentinels(texts, tokenizer):
    counts = [len(_SENTINEL.findall(text)) for text in texts]
    most = max(counts, default=0)
    if most and f"<extra_id_{most - 1}>" not in tokenizer.get_vocabulary():
        raise ValueError(
            "texts must have at most as many blanks as the tokenizer has "
            f"sentinels; received {most} blanks in row {counts.index(most)}."
        )


def parse_answer(answer: str) -> dict[int, str]:
    """Splits `<extra_id_0> cat <extra_id_1> the` by its sentinels.

    Args:
        answer: What a model generated.

    Returns:
        A dict from the number of a sentinel to the text behind it; where a
        sentinel comes twice, the first one counts.
    """
    parts = _SENTINEL.split(answer)
    spans = {}
    for number, span in zip(parts[1::2], parts[2::2], strict=True):
        spans.setdefault(int(number), span.strip())
    return spans


def fill_in(
    text: str, answer: str, mark: str = "{}", missing: str = "..."
) -> str:
    """Puts a model's answer into the blanks of a text.

    Args:
        text: A text with sentinels.
        answer: What the model generated.
        mark: How to set off what is filled in, say `"[{}]"`.
        missing: Stands where the answer has nothing.

    Returns:
        The text without sentinels.
    """
    spans = parse_answer(answer)

    def replace(match):
        return mark.format(spans.get(int(match[1])) or missing)

    return _SENTINEL.sub(replace, text)
