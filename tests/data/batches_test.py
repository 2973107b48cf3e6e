import numpy as np
import pytest

from keras_switch.data import Examples, NextToken, PrefixLM, SpanCorruption
from keras_switch.data.batches import BatchMaker


class Copy:
    """Inputs = tokens + eos; targets = the first token + eos."""

    min_tokens = 1

    def lengths(self, num_tokens):
        return np.asarray(num_tokens) + 1, np.full_like(num_tokens, 2)

    def __call__(self, tokens, lengths, rng):
        lengths = np.asarray(lengths)
        ends = np.cumsum(lengths)
        inputs = np.insert(tokens, ends, 1)
        targets = np.insert(tokens[ends - lengths], np.arange(len(ends)) + 1, 1)
        return Examples(inputs, lengths + 1, targets, np.full_like(lengths, 2))


def make(maker, rows, shift=0):
    rows = np.asarray(rows)
    return maker.make(rows, np.full_like(rows, shift), None)


def test_packed_rows_by_hand(make_corpus):
    # Documents 10 11 12 13 14 | 15 16 | 17; a window is 5 tokens and eos.
    maker = BatchMaker(make_corpus([5, 2, 1]), Copy(), 6, 4, "segments")
    assert (maker.window, maker.num_rows) == (5, 2)
    x, y, weight = make(maker, [1, 0])
    np.testing.assert_array_equal(
        x["encoder_token_ids"],
        [[15, 16, 1, 17, 1, 0], [10, 11, 12, 13, 14, 1]],
    )
    np.testing.assert_array_equal(
        x["encoder_padding_mask"], [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]]
    )
    np.testing.assert_array_equal(y, [[15, 1, 17, 1], [10, 1, 0, 0]])
    np.testing.assert_array_equal(
        x["decoder_token_ids"], [[0, 15, 0, 17], [0, 10, 0, 0]]
    )
    np.testing.assert_array_equal(
        x["decoder_padding_mask"], [[1, 1, 2, 2], [1, 1, 0, 0]]
    )
    np.testing.assert_array_equal(weight, [[1, 1, 1, 1], [1, 1, 0, 0]])
    assert {a.dtype for a in (y, *x.values())} == {np.dtype("int32")}
    assert weight.dtype == np.float32


def test_unpacked_rows_by_hand(make_corpus):
    maker = BatchMaker(make_corpus([5, 2, 1]), Copy(), 6, 4, "none")
    assert maker.num_rows == 3
    x, y, weight = make(maker, [2, 1])
    np.testing.assert_array_equal(
        x["encoder_token_ids"], [[17, 1, 0, 0, 0, 0], [15, 16, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        x["encoder_padding_mask"], [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    )
    np.testing.assert_array_equal(y, [[17, 1, 0, 0], [15, 1, 0, 0]])


def test_a_stream_by_hand(make_corpus):
    maker = BatchMaker(make_corpus([5, 2, 7]), Copy(), 6, None, "stream")
    # 14 tokens: two windows of 5 may move by up to 4 tokens.
    assert maker.num_rows == 2 and maker.largest_shift() == 4
    x, _, _ = make(maker, [0, 1], shift=4)
    np.testing.assert_array_equal(
        x["encoder_token_ids"],
        [[14, 15, 16, 17, 18, 1], [19, 20, 21, 22, 23, 1]],
    )
    assert (x["encoder_padding_mask"] == 1).all()


@pytest.mark.parametrize(
    "total, rows, shift", [(5, 1, 0), (9, 1, 4), (10, 1, 4)]
)
def test_short_streams_are_used_whole(make_corpus, total, rows, shift):
    maker = BatchMaker(make_corpus([total]), Copy(), 6, None, "stream")
    assert (maker.num_rows, maker.largest_shift()) == (rows, shift)


def test_full_windows_need_no_padding(make_corpus):
    objective = SpanCorruption(2000)
    maker = BatchMaker(make_corpus([1000]), objective, 64, None, "stream")
    rng = np.random.default_rng(0)
    x, y, weight = maker.make(np.arange(4), np.zeros(4, int), rng)
    assert maker.target_length == objective.lengths(maker.window)[1]
    assert y.shape == (4, maker.target_length)
    assert x["encoder_padding_mask"].all() and weight.all()


@pytest.mark.parametrize("packing", ["segments", "none", "stream"])
@pytest.mark.parametrize("objective", [SpanCorruption(3000), PrefixLM()])
def test_segments_agree_between_encoder_and_decoder(
    make_corpus, packing, objective
):
    lengths = np.random.default_rng(1).integers(1, 200, 20)
    maker = BatchMaker(make_corpus(lengths), objective, 64, None, packing)
    rows = np.arange(maker.num_rows)
    x, y, weight = maker.make(rows, 0 * rows, np.random.default_rng(0))
    encoder, decoder = x["encoder_padding_mask"], x["decoder_padding_mask"]
    assert (encoder.max(1) == decoder.max(1)).all()
    assert encoder.max() > 1 or packing != "segments"
    np.testing.assert_array_equal(weight > 0, decoder > 0)
    # Eos ends every segment, on both sides.
    for tokens, mask in ((x["encoder_token_ids"], encoder), (y, decoder)):
        ends = np.diff(mask, axis=1, append=0) != 0
        np.testing.assert_array_equal(ends & (mask > 0), tokens == 1)


def test_a_document_shorter_than_a_window_is_a_row(make_corpus):
    maker = BatchMaker(
        make_corpus([3]), SpanCorruption(1000), 128, None, "segments"
    )
    x, y, _ = maker.make(np.array([0]), np.array([0]), np.random.default_rng(0))
    # 2 kept, a sentinel, eos; a sentinel, 1 hidden, eos.
    assert np.count_nonzero(x["encoder_padding_mask"]) == 4
    assert np.count_nonzero(x["decoder_padding_mask"]) == 3


def test_bad_settings_are_refused(make_corpus):
    corpus = make_corpus([50, 50])
    objective = SpanCorruption(1000)

    def refuse(message, *arguments):
        with pytest.raises(ValueError, match=message):
            BatchMaker(*arguments)

    empty = make_corpus([0])
    refuse("must be a TokenizedCorpus", [1], objective, 64, None, "none")
    refuse("corpus must hold tokens", empty, objective, 64, None, "none")
    refuse("input_length must be", corpus, objective, 0, None, "none")
    refuse("input_length must be", corpus, objective, 64.0, None, "none")
    refuse("target_length must be", corpus, objective, 64, 0, "none")
    refuse("at least 3 and 3", corpus, objective, 64, 2, "none")
    refuse("packing must be one of", corpus, objective, 64, None, "pack")
    refuse("a window of 110 tokens", corpus, objective, 100, None, "stream")
    refuse("Shorten the window", corpus, objective, 3000, None, "segments")
    refuse("below the sentinels", corpus, SpanCorruption(200), 64, None, "none")
    one_token = make_corpus([1, 1, 1])
    refuse(
        "at least 2 tokens; received 3", one_token, objective, 64, None, "none"
    )


def test_an_objective_that_makes_too_much_is_caught(make_corpus):
    class Liar(Copy):
        def lengths(self, num_tokens):
            inputs, targets = super().lengths(num_tokens)
            return inputs - 1, targets

    maker = BatchMaker(make_corpus([20]), Liar(), 6, None, "none")
    with pytest.raises(ValueError, match="a row of 7 tokens where 6"):
        make(maker, [0])


def test_rows_of_a_decoder_alone_by_hand(make_corpus):
    # Documents 10 11 12 13 14 | 15 16 | 17; a window is 5 tokens and eos.
    maker = BatchMaker(make_corpus([5, 2, 1]), NextToken(), 6, None, "segments")
    assert (maker.window, maker.num_rows, maker.target_length) == (5, 2, 6)
    x, y, weight = make(maker, [1, 0])
    assert set(x) == {"token_ids", "padding_mask"}
    np.testing.assert_array_equal(
        x["token_ids"], [[0, 15, 16, 0, 17, 0], [0, 10, 11, 12, 13, 14]]
    )
    np.testing.assert_array_equal(
        x["padding_mask"], [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]]
    )
    np.testing.assert_array_equal(
        y, [[15, 16, 1, 17, 1, 0], [10, 11, 12, 13, 14, 1]]
    )
    np.testing.assert_array_equal(weight, [[1, 1, 1, 1, 1, 0], [1] * 6])
