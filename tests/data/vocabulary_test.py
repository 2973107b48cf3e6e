import pytest
import sentencepiece

from keras_switch.data import train_sentencepiece


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
