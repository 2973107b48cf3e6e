"""Batches as a pure function of the seed and the step."""

import functools

import numpy as np

from keras_switch.data.batches import BatchMaker
from keras_switch.data.checks import check_integer
from keras_switch.data.mixture import Mixture
from keras_switch.data.seeding import (
    MIXED_NOISE,
    NOISE,
    SHIFT,
    SHUFFLE,
    fingerprint,
    random_generator,
)
from keras_switch.data.tokens import TokenizedCorpus

# Batches read ahead, by this many threads: enough to hide the making of a
# batch behind a step, few enough that an abandoned iterator wastes little.
_READ_AHEAD, _THREADS = 8, 1


class Pipeline:
    """Endless, shuffled training batches with random access.

    `batch(step)` depends on the corpus, the settings, the seed and the step
    only: it is the same in every process and in any order of access, so a
    run resumes at a step without any saved state. Rows are shuffled anew in
    every epoch and each comes once per epoch, with a temperature once per
    epoch of its domain; their noise is drawn anew too.

    Args:
        corpus: `TokenizedCorpus`, see `encode_documents`.
        objective: `SpanCorruption`, `PrefixLM`, `NextToken` for a decoder
            alone, or an object with their `min_tokens`, `lengths` and call.
        input_length: length of the encoder's rows, or of a decoder's alone,
            eos included.
        target_length: length of the decoder's rows, eos included; None = what
            a full row needs.
        batch_size: rows of a batch.
        seed: a non-negative integer.
        packing: how documents share rows. `"segments"`: documents are cut
            into pieces of at most a row, and short pieces share a row, each
            with its own number in the padding masks, so that attention keeps
            them apart. `"stream"`: as T5, documents run on and are cut into
            full windows without any padding, at places that move from epoch
            to epoch. `"none"`: one piece to a row, padded.
        temperature: None takes the rows of all domains alike. From 1 up a
            domain has a share of the rows in proportion to the number of its
            own to the power of `1 / temperature`: the higher, the more equal
            the domains. It takes `packing="none"`, whose rows are of one
            domain each.

    Raises:
        ValueError: on a bad argument, an empty corpus, windows with more than
            100 spans, or a temperature and a domain without a row.

    Example:
        corpus = keras_switch.data.encode_documents(documents, "vocabulary.spm")
        objective = keras_switch.data.SpanCorruption(vocabulary_size=8100)
        pipeline = keras_switch.data.Pipeline(corpus, objective, 256)
        model.fit(pipeline.dataset(), steps_per_epoch=100)
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        objective,
        input_length: int,
        target_length: int | None = None,
        batch_size: int = 32,
        seed: int = 0,
        packing: str = "segments",
        temperature: float | None = None,
    ):
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        self._maker = BatchMaker(
            corpus, objective, input_length, target_length, packing
        )
        self.batch_size = batch_size
        self.seed = seed
        self._mixed = None
        if temperature is not None:
            self._mixed = _Mixed(self._maker, float(temperature), seed)
        # The orders of the few epochs in use; not a decorated method, which
        # would keep every pipeline alive.
        self._order = functools.lru_cache(maxsize=4)(self._shuffle)

    @property
    def input_length(self) -> int:
        """Length of the encoder's rows."""
        return self._maker.input_length

    @property
    def target_length(self) -> int:
        """Length of the decoder's rows."""
        return self._maker.target_length

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return self._maker.num_rows

    def batch(self, step: int) -> tuple[dict, np.ndarray, np.ndarray]:
        """The batch of a step.

        Args:
            step: a non-negative integer.

        Returns:
            `(x, y, sample_weight)`. x holds `encoder_token_ids` and
            `encoder_padding_mask`, int32 `[B, input_length]`, and
            `decoder_token_ids` and `decoder_padding_mask`, int32
            `[B, target_length]`; masks are 0 where there is padding, and
            otherwise the number of the example within the row, from 1. y are
            the targets, int32 `[B, target_length]`: the decoder's inputs one
            place further, with eos. sample_weight is float32, 1 on targets
            and 0 on padding. For a decoder alone x holds `token_ids` and
            `padding_mask`, as the decoder's here.

        Raises:
            ValueError: if the step is negative.
        """
        check_integer("step", step, 0)
        if self._mixed:
            rows = self._mixed.rows(step * self.batch_size, self.batch_size)
            rng = random_generator(self.seed, MIXED_NOISE, step)
            return self._maker.make(rows, np.zeros_like(rows), rng)
        place = int(step) * self.batch_size + np.arange(self.batch_size)
        epoch, place = np.divmod(place, self.num_rows)
        rows, shift = np.zeros((2, self.batch_size), np.int64)
        for one in np.unique(epoch).tolist():
            chosen = epoch == one
            order, move = self._order(one)
            rows[chosen] = order[place[chosen]]
            shift[chosen] = move
        return self._maker.make(
            rows, shift, random_generator(self.seed, NOISE, step)
        )

    def _shuffle(self, epoch):
        """The order of the rows in an epoch, and the shift of the windows."""
        # Sorted random numbers, not `permutation`: numpy may change the
        # latter's algorithm from release to release.
        keys = random_generator(self.seed, SHUFFLE, epoch).random(self.num_rows)
        move = random_generator(self.seed, SHIFT, epoch).random()
        shift = int(move * (self._maker.largest_shift() + 1))
        return np.argsort(keys, kind="stable"), shift

    def dataset(self, start_step: int = 0):
        """The batches from a step on, without end, read ahead in a thread.

        Args:
            start_step: the step of the first batch; to resume, the number of
                steps that were done.

        Returns:
            A `grain.IterDataset` that `fit` takes on every backend, together
            with `steps_per_epoch`. It may be iterated many times.

        Raises:
            ValueError: if `start_step` is negative.
        """
        import grain

        check_integer("start_step", start_step, 0)
        options = grain.ReadOptions(
            num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD
        )
        steps = _Steps(self, start_step)
        return grain.MapDataset.source(steps).to_iter_dataset(options)

    def fingerprint(self) -> str:
        """A hex digest of the data and all settings.

        Returns:
            Two pipelines with the same fingerprint give the same batches.
        """
        mixed = {"temperature": self._mixed.temperature} if self._mixed else {}
        return fingerprint(self._maker, self.batch_size, self.seed, **mixed)


class _Mixed:
    """Rows by domain, in the order of a `Mixture`."""

    def __init__(self, maker, temperature, seed):
        if maker.packing != "none":
            raise ValueError(
                'temperature takes packing="none", whose rows are of one '
                f"domain each; received packing={maker.packing!r}."
            )
        domain = maker.domain_of_rows()
        self._rows = [
            np.flatnonzero(domain == i)
            for i in range(len(maker.corpus.domains))
        ]
        empty = [
            name
            for name, rows in zip(maker.corpus.domains, self._rows, strict=True)
            if not len(rows)
        ]
        if empty:
            raise ValueError(
                "temperature takes a row of each domain; received none of "
                f"{', '.join(empty)}."
            )
        self.temperature = temperature
        sizes = [len(rows) for rows in self._rows]
        self._mixture = Mixture(sizes, temperature, seed)

    def rows(self, start, count):
        drawn = self._mixture.rows(start, count).tolist()
        return np.array([self._rows[domain][i] for domain, i in drawn])


class _Steps:
    """The batches from a step on, as grain wants to read them."""

    def __init__(self, pipeline, start_step):
        self._pipeline = pipeline
        self._start_step = start_step

    def __len__(self):
        return 2**40

    def __getitem__(self, index):
        return self._pipeline.batch(self._start_step + index)

    def __repr__(self):
        return f"batches from step {self._start_step}"
