import numpy as np
import pytest
import sentencepiece

from keras_switch.data import Document, encode_documents, tokens


def test_documents_lie_end_to_end(encoded, documents, vocabulary):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert encoded.tokens.dtype == np.uint16
    assert len(encoded.offsets) == len(documents) + 1
    assert encoded.offsets[-1] == encoded.tokens.size
    for index in (0, 1, 57, 79):
        expected = processor.encode(documents[index].text)
        assert encoded.document(index).tolist() == expected
    assert encoded.domains == ("news", "wiki")
    assert encoded.domain.tolist() == [0] * 40 + [1] * 40


def test_chunks_and_threads_change_nothing(
    encoded, documents, vocabulary, monkeypatch
):
    monkeypatch.setattr(tokens, "_CHUNK", 7)
    again = encode_documents(documents, vocabulary, num_threads=1)
    assert_same(again, encoded)


def test_the_cache_is_used_and_gives_the_same(
    encoded, documents, vocabulary, tmp_path, monkeypatch
):
    assert_same(encode_documents(documents, vocabulary, tmp_path), encoded)
    (cached,) = tmp_path.iterdir()

    def refuse(*args):
        raise AssertionError("must not encode again")

    monkeypatch.setattr(tokens, "_encode", refuse)
    assert_same(encode_documents(documents, vocabulary, tmp_path), encoded)
    with pytest.raises(AssertionError, match="not encode again"):
        encode_documents(documents[:-1], vocabulary, tmp_path)


def test_the_digest_tells_texts_domains_and_borders_apart(vocabulary):
    variants = [
        [Document("ab", "c")],
        [Document("a", "bc")],
        [Document("ab", "d")],
        [Document("ab", "c"), Document("ab", "c")],
    ]
    digests = {encode_documents(v, vocabulary).digest for v in variants}
    assert len(digests) == len(variants)


def test_a_damaged_cache_is_made_again(
    encoded, documents, vocabulary, tmp_path
):
    encode_documents(documents, vocabulary, tmp_path)
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    for damaged in (b"", whole[:1000], b"not a zip file"):
        cached.write_bytes(damaged)
        assert_same(encode_documents(documents, vocabulary, tmp_path), encoded)
        assert cached.stat().st_size == len(whole)


def test_a_cache_of_other_texts_is_made_again(
    encoded, documents, vocabulary, tmp_path
):
    encode_documents(documents, vocabulary, tmp_path)
    (cached,) = tmp_path.iterdir()
    other = encoded._replace(digest="other", tokens=encoded.tokens[::-1])
    np.savez(cached, **other._asdict())
    assert_same(encode_documents(documents, vocabulary, tmp_path), encoded)


def test_large_vocabularies_take_int32(documents, vocabulary):
    class Large:
        def get_piece_size(self):
            return 2**16 + 1

        def encode(self, texts, num_threads):
            return [[2**16] for _ in texts]

    corpus = tokens._encode(documents, Large(), None)
    assert corpus.tokens.dtype == np.int32
    assert corpus.tokens.max() == 2**16


def test_bad_input_is_refused(documents, vocabulary, tmp_path):
    with pytest.raises(ValueError, match="documents must hold at least one"):
        encode_documents([], vocabulary)
    with pytest.raises(ValueError, match="received 1 documents without"):
        encode_documents([Document("", "x")], vocabulary)
    (tmp_path / "text").write_text("no model")
    with pytest.raises(ValueError, match="vocabulary must be a SentencePiece"):
        encode_documents(documents, tmp_path / "text")


def assert_same(one, other):
    assert one.digest == other.digest and one.domains == other.domains
    for name in ("tokens", "offsets", "domain"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
