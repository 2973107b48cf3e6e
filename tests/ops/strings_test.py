import pytest

from keras_switch.ops import strings

tf = pytest.importorskip("tensorflow")

TOKENS = {"<a>": 90, "[B+]": 91}


def lengths(texts):
    """An encoder: the number of bytes of every word."""
    words = tf.strings.split(texts)
    return tf.RaggedTensor.from_row_splits(
        tf.strings.length(words.flat_values), words.row_splits
    )


def encode(texts, tokens=TOKENS):
    @tf.function
    def graph(texts):
        return strings.encode_around(texts, tokens, lengths)

    return graph(tf.constant(texts)).to_list()


@pytest.mark.parametrize(
    "text, ids",
    [
        ("", []),
        ("one three", [3, 5]),
        ("<a>", [90]),
        ("one<a>three", [3, 90, 5]),
        (" one <a> three ", [3, 90, 5]),
        ("<a><a>[B+]", [90, 90, 91]),
        ("[BB <a", [3, 2]),
        ("\xe9 <a>", [2, 90]),
        ("nul\0<a>\0", [4, 90, 1]),
    ],
)
def test_tokens_are_cut_out_and_put_back(text, ids):
    assert encode([text]) == [ids]
    assert encode(["<a> x", text, ""]) == [[90, 1], ids, []]


def test_no_tokens():
    assert encode(["one <a>"], {}) == [[3, 3]]


def test_values_may_be_strings():
    def words(texts):
        return tf.strings.split(texts)

    got = strings.encode_around(["x<a>y"], {"<a>": "<a>"}, words)
    assert got.to_list() == [[b"x", b"<a>", b"y"]]


@pytest.mark.parametrize("tokens", [TOKENS, {}])
@pytest.mark.parametrize("text", [b"\xff", b"\xed\xa0\x80", b"a\xc3"])
def test_bytes_that_are_not_utf_8_are_refused(text, tokens):
    with pytest.raises(tf.errors.InvalidArgumentError):
        encode([text], tokens)


def test_ends_are_put_around_every_row():
    ids = tf.ragged.constant([[3, 4], []])
    assert strings.enclose(ids, [1], [8, 9]).to_list() == [
        [1, 3, 4, 8, 9],
        [1, 8, 9],
    ]
    assert strings.enclose(ids, [], [9]).to_list() == [[3, 4, 9], [9]]
    assert strings.enclose(ids, [], []) is ids
