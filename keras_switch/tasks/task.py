"""A task: where its examples come from, how they are put, what counts."""

import dataclasses
import os
from collections.abc import Callable

from keras_switch.tasks.metrics import check_metrics
from keras_switch.tasks.splits import Splits

CLASSIFICATION = ("accuracy", "macro_f1")
_SLOT = "{input}"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Args:
        name: its name in flags, tables and files.
        load: takes a cache folder or `None`, returns `Splits`; the same
            examples on the same sides each time.
        template: what a model reads, with `{input}` where the example's input
            stands; exactly once.
        metrics: what is reported, of `keras_switch.tasks.METRICS`.
        classification: whether targets are labels.

    Raises:
        ValueError: if the template or a metric is not as above.
    """

    name: str
    load: Callable[[str | os.PathLike | None], Splits]
    template: str = _SLOT
    metrics: tuple[str, ...] = ("exact_match", "token_f1", "rougeL", "chrf")
    classification: bool = False

    def __post_init__(self) -> None:
        if self.template.count(_SLOT) != 1:
            raise ValueError(
                f"template must hold {_SLOT} exactly once; received "
                f"{self.template!r}."
            )
        check_metrics(self.metrics)
        # A list could not be looked up in a cache.
        object.__setattr__(self, "metrics", tuple(self.metrics))

    def prompt(self, text: str) -> str:
        """The input of an example as a model reads it."""
        return self.template.replace(_SLOT, text)
