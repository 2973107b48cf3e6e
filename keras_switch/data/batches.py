"""Rows of tokens made into the arrays that the model trains on."""

import numpy as np

from keras_switch.data.checks import check_integer
from keras_switch.data.objectives import largest_window
from keras_switch.data.packing import (
    Rows,
    cut_documents,
    one_piece_rows,
    packed_rows,
)
from keras_switch.data.ragged import positions, starts_of
from keras_switch.data.tokens import TokenizedCorpus

PACKINGS = ("segments", "stream", "none")


class BatchMaker:
    """Cuts a corpus into rows and makes batches of any of them.

    The settings and their checks are those of `Pipeline`.

    Args:
        corpus: `TokenizedCorpus`.
        objective: `SpanCorruption`, `PrefixLM`, `NextToken` or the like.
        input_length: length of the encoder's rows, or of a decoder's alone.
        target_length: length of the decoder's rows, or None.
        packing: "segments", "stream" or "none".
    """

    def __init__(self, corpus, objective, input_length, target_length, packing):
        _check_settings(corpus, input_length, target_length, packing)
        self.corpus = corpus
        self.objective = objective
        self.input_length = input_length
        self.packing = packing
        self.decoder_only = getattr(objective, "decoder_only", False)
        self.window = largest_window(objective, input_length, target_length)
        self.target_length = target_length or self._default_target_length()
        self._check_ids()
        self._rows = None if packing == "stream" else self._cut()
        self.num_rows = self._count_rows()

    def _default_target_length(self):
        if self.decoder_only:
            return self.input_length
        targets = int(self.objective.lengths(self.window)[1])
        if self.packing != "segments":
            return targets
        # Several short targets need more room than a long one: each has its
        # own eos, and counts that were rounded up. With a twentieth more,
        # plus one, rows of news and summaries are 99 % full at 128 to 512.
        return targets + -(-targets // 20) + 1

    def _check_ids(self):
        most = np.full(self.window, self.corpus.tokens.max())
        self.objective(most, [self.window], np.random.default_rng(0))

    def _cut(self):
        starts, lengths = cut_documents(
            self.corpus.offsets, self.window, self.objective.min_tokens
        )
        if not len(starts):
            raise ValueError(
                "corpus must have a document of at least "
                f"{self.objective.min_tokens} tokens; received "
                f"{len(self.corpus.domain)} documents, all shorter."
            )
        if self.packing == "none":
            return one_piece_rows(starts, lengths)
        return packed_rows(
            starts,
            lengths,
            self.objective,
            self.input_length,
            self.target_length,
        )

    def _count_rows(self):
        if self._rows is not None:
            return len(self._rows.offsets) - 1
        total = self.corpus.tokens.size
        if total < self.window:
            raise ValueError(
                f"corpus must have at least a window of {self.window} tokens "
                f'for packing="stream"; received {total}.'
            )
        return max(1, (total - self.window + 1) // self.window)

    def largest_shift(self) -> int:
        """How many tokens the windows of a stream may be moved by."""
        if self._rows is not None:
            return 0
        rest = self.corpus.tokens.size - self.num_rows * self.window
        return min(rest, self.window - 1)

    def domain_of_rows(self) -> np.ndarray:
        """The domain of each row that is a piece of its own, int32 `[R]`."""
        starts = self._rows.starts
        document = np.searchsorted(self.corpus.offsets, starts, side="right")
        return self.corpus.domain[document - 1]

    def make(self, rows: np.ndarray, shift: np.ndarray, rng) -> tuple:
        """The arrays of some rows.

        Args:
            rows: int64 `[B]`, which rows.
            shift: int64 `[B]`, tokens to move the windows of a stream by.
            rng: the random generator of the objective.

        Returns:
            `(x, y, sample_weight)`, see `Pipeline.batch`.
        """
        pieces = self._pieces(rows, shift)
        flat = self.corpus.tokens[positions(pieces.starts, pieces.lengths)]
        examples = self.objective(flat, pieces.lengths, rng)
        counts = np.diff(pieces.offsets)
        targets, target_segments = _fill(
            examples.targets,
            examples.target_lengths,
            counts,
            self.target_length,
        )
        stack = "" if self.decoder_only else "decoder_"
        x = {
            f"{stack}token_ids": _shift_right(targets, target_segments),
            f"{stack}padding_mask": target_segments,
        }
        if not self.decoder_only:
            inputs, segments = _fill(
                examples.inputs,
                examples.input_lengths,
                counts,
                self.input_length,
            )
            encoder = ("encoder_token_ids", "encoder_padding_mask")
            x = {encoder[0]: inputs, encoder[1]: segments, **x}
        return x, targets, (target_segments > 0).astype(np.float32)

    def _pieces(self, rows, shift):
        if self._rows is None:
            lengths = np.full(len(rows), self.window, np.int64)
            return one_piece_rows(shift + rows * self.window, lengths)
        starts, lengths, offsets = self._rows
        counts = offsets[rows + 1] - offsets[rows]
        pieces = positions(offsets[rows], counts)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Rows(starts[pieces], lengths[pieces], offsets)


def _check_settings(corpus, input_length, target_length, packing):
    if not isinstance(corpus, TokenizedCorpus):
        raise ValueError(
            "corpus must be a TokenizedCorpus (see encode_documents); "
            f"received {type(corpus).__name__}."
        )
    if not corpus.tokens.size:
        raise ValueError("corpus must hold tokens; received an empty one.")
    check_integer("input_length", input_length, 1)
    if target_length is not None:
        check_integer("target_length", target_length, 1)
    if packing not in PACKINGS:
        raise ValueError(
            f"packing must be one of {PACKINGS}; received {packing!r}."
        )


def _fill(tokens, lengths, counts, row_length):
    """Examples side by side in rows, and the number of each in its row.

    Args:
        tokens: int32 `[sum(lengths)]`, examples end to end.
        lengths: int64 `[N]`.
        counts: int64 `[B]` with sum N, examples of a row.
        row_length: the length T of a row.

    Returns:
        `(tokens, segments)`, both int32 `[B, T]`; 0 = padding.
    """
    num_rows = len(counts)
    row = np.repeat(np.arange(num_rows), counts)  # [N]
    used = np.bincount(row, weights=lengths, minlength=num_rows)
    if used.max() > row_length:
        raise ValueError(
            f"the objective must keep to its lengths(); received a row of "
            f"{int(used.max())} tokens where {row_length} were planned."
        )
    first = starts_of(counts)
    starts = starts_of(lengths)
    column = starts - starts[first][row]
    index = positions(row * row_length + column, lengths)
    filled = np.zeros((2, num_rows * row_length), np.int32)
    filled[0, index] = tokens
    segment = np.arange(1, len(lengths) + 1) - np.repeat(first, counts)
    filled[1, index] = np.repeat(segment, lengths)
    return filled.reshape(2, num_rows, row_length)


def _shift_right(targets, segments):
    """The decoder's inputs: pad (0) starts every segment."""
    shifted = np.zeros_like(targets)
    same = segments[:, 1:] == segments[:, :-1]
    shifted[:, 1:] = np.where(same, targets[:, :-1], 0)
    return shifted
