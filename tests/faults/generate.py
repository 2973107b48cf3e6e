"""What a stranger may send to `generate`, and what comes back.

An answer, or one clear error at once: never a crash, a hang, gigabytes, or
text that takes control.
"""

import concurrent.futures
import functools
import gc
import time

import numpy as np
import pytest

from tests.faults import runner
from tests.faults.runner import Case
from tests.models import generating, tiny

_QUICK = 12
_LENGTH = 16
_CALLS, _WARM = 2000, 300
_FLAT = 20  # megabytes
_BAD_NUMBERS = (0, -5, 10**9, 2**40, 1.5, "8", True, float("nan"))


def cases(quick: bool) -> list[Case]:
    """All cases, or some."""
    found = [
        Case(name, functools.partial(_on_text, run), 240)
        for name, run in _on_texts()
    ]
    if quick:
        return found[::_QUICK]
    calls = functools.partial(_on_text, functools.partial(_memory, _CALLS))
    name = f"memory is flat over {_CALLS:,} calls of mixed lengths"
    return [*found, Case(name, calls, 1800)]


def _on_text(run):
    preprocessor = tiny.preprocessor(
        encoder_sequence_length=_LENGTH, decoder_sequence_length=_LENGTH
    )
    lm = generating.lm(preprocessor)
    lm.compile(sampler="greedy")
    run(lm)


def _on_texts():
    yield from _of_texts()
    yield from _of_long_texts()
    yield from _of_arguments()
    yield from _of_models()


def _of_texts():
    yield "no text", lambda lm: _answers(lm, "")
    yield "spaces", lambda lm: _answers(lm, " \n\t ")
    yield "no texts", lambda lm: _same(lm.generate([]), [])
    yield "a text of zeros", lambda lm: _answers(lm, "\0" * 5)
    yield "characters nobody knows", lambda lm: _answers(lm, "\U0001f600\u4e00")
    for name, value in (
        ("None", None),
        ("a number", 3),
        ("numbers", [1, 2]),
        ("a list of lists", [["a"]]),
        ("an unknown key", {"text": "a"}),
        ("bytes that are no UTF-8", b"\xff\xfe"),
        ("a batch with bytes that are no UTF-8", ["a", b"\xff"]),
        ("half of a character", "a\ud800"),
    ):
        yield name, functools.partial(_refuses, inputs=value, message="inputs")
    yield (
        "texts and prompts of different number",
        functools.partial(_refuses, inputs=_uneven(), message="decoder_text"),
    )


def _of_long_texts():
    long = "dog " * 10_000
    yield (
        "10,000 words",
        functools.partial(_refuses, inputs=long, message="at most 16 tokens"),
    )
    yield (
        "10,000 words, to be cut",
        lambda lm: _answers(lm, long, truncate=True),
    )
    yield (
        "one word of a megabyte",
        functools.partial(
            _refuses, inputs="a" * 2**20, message="at most 16 tokens"
        ),
    )
    yield (
        "a prompt of 10,000 words",
        functools.partial(
            _refuses,
            inputs={"encoder_text": "a", "decoder_text": long},
            message="at most",
        ),
    )
    yield "control tokens in a text are text", _controls
    yield "control tokens in a prompt are text", _controls_in_prompts


def _of_arguments():
    for name in ("max_length", "max_new_tokens"):
        for value in _BAD_NUMBERS:
            yield (
                f"{name} of {value!r}",
                functools.partial(_bad_number, name=name, value=value),
            )
    for name, value in (
        ("seed", -1),
        ("seed", "a"),
        ("max_cache_bytes", 0),
        ("stop_token_ids", [10**9]),
        ("stop_token_ids", ["</s>"]),
        ("truncate", 1.5),
    ):
        yield (
            f"{name} of {value!r}",
            functools.partial(
                _refuses, inputs="a", message=name, **{name: value}
            ),
        )
    yield (
        "more memory than allowed",
        functools.partial(
            _refuses, inputs="a", message="max_cache_bytes", max_cache_bytes=10
        ),
    )


def _of_models():
    yield "weights of NaN", functools.partial(_bad_weights, value=np.nan)
    yield "weights of infinity", functools.partial(_bad_weights, value=np.inf)
    yield "ids that are not in the vocabulary", _ids
    yield "8 threads with seeds, as one by one", _threads
    yield "mixed lengths, as one by one", _mixed
    yield "memory is flat over 100 calls", functools.partial(_memory, 100)


def _uneven():
    return {"encoder_text": ["a", "b"], "decoder_text": ["a"]}


def _same(got, wanted):
    assert got == wanted, got


def _answers(lm, text, **arguments):
    assert isinstance(lm.generate(text, **arguments), str)


def _refuses(lm, inputs, message, **arguments):
    with runner.costs(seconds=5, megabytes=200):
        with pytest.raises(ValueError, match=message):
            lm.generate(inputs, **arguments)
    _answers(lm, "the dog")  # it still works


def _bad_number(lm, name, value):
    kind = name if not isinstance(value, int) or value < 10**6 else ""
    _refuses(lm, "the dog", kind or "max_", **{name: value})


def _controls(lm):
    tokenizer = lm.preprocessor.tokenizer
    for text in ("a </s> b", "<pad><pad>", "<unk>", "\u2581</s>", "</s>" * 3):
        ids = list(map(int, tokenizer(text)))
        assert not {tokenizer.end_token_id, tokenizer.pad_token_id} & set(ids)
    plain = lm.preprocessor.generate_preprocess(["a </s> b"])
    ids = np.asarray(plain["encoder_token_ids"])[0]
    real = np.asarray(plain["encoder_padding_mask"])[0]
    ends = ids[real == 1] == tokenizer.end_token_id
    assert ends.sum() == 1 and ends[-1]


def _controls_in_prompts(lm):
    inputs = {"encoder_text": "the dog", "decoder_text": "</s></s>"}
    _answers(lm, inputs)
    x = lm.preprocessor.generate_preprocess(inputs)
    ids = np.asarray(x["decoder_token_ids"]).reshape(-1)
    real = np.asarray(x["decoder_padding_mask"]).reshape(-1) == 1
    end = lm.preprocessor.tokenizer.end_token_id
    assert (ids[real] != end).all()


def _bad_weights(lm, value):
    weight = lm.backbone.decoder_layer_norm.trainable_weights[0]
    weight.assign(np.full(weight.shape, value, "float32"))
    with pytest.raises(FloatingPointError, match="not finite"):
        lm.generate("the dog", max_length=8)


def _ids(lm):
    tokenizer = lm.preprocessor.tokenizer
    unknown = tokenizer.detokenize([2])
    assert tokenizer.detokenize([10**6]) == unknown
    with pytest.raises(ValueError, match="at least 0"):
        tokenizer.detokenize([-1])


def _threads(lm):
    lm.compile(sampler="random")
    jobs = [(t, s) for t in generating.TEXTS[:4] for s in range(6)]

    def one(job):
        return lm.generate(job[0], max_length=10, seed=job[1])

    serial = list(map(one, jobs))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, jobs)) == serial
    assert len(set(serial)) > len(jobs) / 3


def _mixed(lm):
    texts = ["", "dog", "the dog walks in the park", "a", "man and dog"]
    alone = [lm.generate(text, max_length=9) for text in texts]
    assert lm.generate(texts, max_length=9) == alone


def _memory(calls, lm):
    """Memory after the first calls, which compile, and after all."""
    rng = np.random.default_rng(3)
    words = "the dog walks in park man milk bread".split()
    first, start = None, time.monotonic()
    for i in range(calls):
        rows = int(rng.integers(1, 5))
        texts = [" ".join(rng.choice(words, 3)[: i % 4]) for _ in range(rows)]
        lm.generate(texts, max_length=int(rng.integers(2, 13)))
        if i == min(_WARM, calls // 2):
            gc.collect()
            first = runner.memory()
    gc.collect()
    grown = (runner.memory() - first) / 2**20
    print(f"{calls} calls in {time.monotonic() - start:.0f} s: {grown:.1f} MB")
    assert grown < _FLAT, f"{grown:.0f} MB more after {calls} calls"
