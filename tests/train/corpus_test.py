import pytest
from absl.testing import flagsaver

from keras_switch import data
from keras_switch_train import corpus, flags
from tests.models import tiny


@pytest.fixture(autouse=True)
def parsed_flags():
    if not flags.flags.FLAGS.is_parsed():
        flags.flags.FLAGS(["test"])


def test_vocabulary_is_whole_or_absent(tmp_path, broken_rename):
    tokenizer = tiny.preprocessor().tokenizer
    path = tmp_path / "vocabulary.spm"
    path.write_bytes(b"old")
    with broken_rename():
        corpus.write_vocabulary(tokenizer, str(tmp_path))
    assert path.read_bytes() == b"old"
    corpus.write_vocabulary(tokenizer, str(tmp_path))
    assert path.read_bytes() == tiny.proto()
    assert [p.name for p in tmp_path.iterdir()] == ["vocabulary.spm"]


@pytest.mark.parametrize("name", ["demo", "domains"])
def test_a_corpus_is_loaded_by_its_name(name, monkeypatch):
    asked = []

    def read_corpus(source):
        asked.append(source)
        return [data.Document(f"text {i}", "d") for i in range(500)]

    monkeypatch.setattr(data, "read_corpus", read_corpus)
    with flagsaver.flagsaver(corpus=name):
        flags._check_corpus()
        documents = corpus.load()
    assert asked == [name]
    assert len(documents.train) + len(documents.held_out) == 500


def test_an_unknown_corpus_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with (
        flagsaver.flagsaver(corpus="domain"),
        pytest.raises(flags.UsageError, match="demo, domains or match"),
    ):
        flags._check_corpus()
