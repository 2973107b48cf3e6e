import hashlib
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.data import HeldOut, Pipeline, PrefixLM, SpanCorruption

PACKINGS = ["segments", "stream", "none"]


def build(corpus, **settings):
    settings = {"input_length": 32, "batch_size": 4, "seed": 5} | settings
    return Pipeline(corpus, SpanCorruption(500), **settings)


def flat(batch):
    x, y, weight = batch
    return [*x.values(), y, weight]


def same(one, other):
    return all(
        np.array_equal(a, b)
        for a, b in zip(flat(one), flat(other), strict=True)
    )


def digest_of(pipeline, steps):
    digest = hashlib.sha256()
    for step in steps:
        for array in flat(pipeline.batch(step)):
            digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_depends_on_its_step_only(encoded, packing):
    pipeline = build(encoded, packing=packing)
    forward = [pipeline.batch(step) for step in range(12)]
    again = build(encoded, packing=packing)
    for step in reversed(range(12)):
        assert same(again.batch(step), forward[step])
    assert not same(forward[0], forward[1])
    assert not same(
        build(encoded, packing=packing, seed=6).batch(0), forward[0]
    )


def test_a_new_process_makes_the_same_batches(encoded, tmp_path):
    path = tmp_path / "corpus.npz"
    np.savez(path, **encoded._asdict())
    script = f"""
import numpy as np
from keras_switch.data import TokenizedCorpus
from tests.data.pipeline_test import build, digest_of
saved = np.load({str(path)!r})
corpus = TokenizedCorpus(**{{name: saved[name] for name in saved}})
print(digest_of(build(corpus), [7, 0, 10**6]))
"""
    output = subprocess.check_output(
        [sys.executable, "-c", script],
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    expected = digest_of(build(encoded), [7, 0, 10**6])
    assert output.splitlines()[-1] == expected


def test_the_batches_are_these(make_corpus):
    """Pinned: a change here changes what every seed means."""
    pipeline = build(make_corpus([50, 9, 30, 4]), input_length=16, batch_size=1)
    x, y, _ = pipeline.batch(3)
    assert pipeline.fingerprint().startswith("59316dfc97a58ec0")
    # 13 tokens, 86 to 98, of which 2 are hidden in one span.
    assert x["encoder_token_ids"].tolist() == [
        [*range(86, 97), 499, 1, 0, 0, 0]
    ]
    assert y.tolist() == [[499, 97, 98, 1, 0, 0, 0]]


@pytest.mark.parametrize("packing", ["segments", "none"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_row_comes_once_per_epoch(make_corpus, packing, batch_size):
    lengths = np.random.default_rng(1).integers(3, 60, 25)
    corpus = make_corpus(lengths, first=2)
    pipeline = Pipeline(
        corpus,
        SpanCorruption(3000),
        input_length=32,
        batch_size=batch_size,
        packing=packing,
    )
    rows = pipeline.num_rows
    steps = -(-3 * rows // batch_size)
    seen = [first_tokens(pipeline.batch(step)) for step in range(steps)]
    seen = np.concatenate(seen)[: 3 * rows].reshape(3, rows)
    for epoch in seen:
        assert sorted(epoch) == sorted(seen[0]) and len(set(epoch)) == rows
    assert seen[0].tolist() != seen[1].tolist() != seen[2].tolist()


def first_tokens(batch):
    # A kept span comes first, so a row's first token tells which row it is.
    return batch[0]["encoder_token_ids"][:, 0]


def test_windows_of_a_stream_move_from_epoch_to_epoch(make_corpus):
    corpus = make_corpus([1000], first=2)
    pipeline = Pipeline(
        corpus, SpanCorruption(3000), 32, batch_size=1, packing="stream"
    )
    rows, window = pipeline.num_rows, 34
    seen = [first_tokens(pipeline.batch(s))[0] - 2 for s in range(6 * rows)]
    seen = np.array(seen).reshape(6, rows)
    assert all((np.diff(np.sort(epoch)) == window).all() for epoch in seen)
    assert len(set(seen.min(axis=1))) > 1
    assert seen.max() + window <= 1000


def test_noise_is_new_in_every_epoch(make_corpus):
    pipeline = build(make_corpus([34]), batch_size=1, packing="none")
    rows = {tuple(pipeline.batch(step)[1][0]) for step in range(20)}
    assert pipeline.num_rows == 1 and len(rows) > 15


def test_the_dataset_resumes_at_a_step(encoded):
    pipeline = build(encoded)
    for start in (0, 9):
        dataset = pipeline.dataset(start)
        # Twice: each iteration begins at `start` again.
        for _ in range(2):
            for step, batch in zip(
                range(start, start + 5), dataset, strict=False
            ):
                assert same(batch, pipeline.batch(step))


def test_the_fingerprint_tells_settings_apart(encoded, make_corpus):
    assert build(encoded).fingerprint() == build(encoded).fingerprint()
    variants = [
        build(encoded),
        build(encoded, seed=6),
        build(encoded, batch_size=8),
        build(encoded, packing="none"),
        build(encoded, input_length=40),
        build(encoded, target_length=20),
        build(make_corpus([200])),
        Pipeline(encoded, SpanCorruption(500, 0.2), 32, batch_size=4, seed=5),
        Pipeline(encoded, PrefixLM(), 32, batch_size=4, seed=5),
    ]
    assert len({v.fingerprint() for v in variants}) == len(variants)


def test_prefix_lm_batches(encoded):
    pipeline = Pipeline(encoded, PrefixLM(0.25), 16, batch_size=4)
    x, y, weight = pipeline.batch(0)
    assert x["encoder_token_ids"].shape == (4, pipeline.input_length)
    assert y.shape == weight.shape == (4, pipeline.target_length)
    assert weight.mean() > 0.5


def test_bad_arguments_are_refused(encoded):
    for name in ("batch_size", "input_length", "target_length"):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            build(encoded, **{name: 0})
    with pytest.raises(ValueError, match="seed must be an integer of at least"):
        build(encoded, seed=-1)
    pipeline = build(encoded)
    with pytest.raises(ValueError, match="step must be"):
        pipeline.batch(-1)
    with pytest.raises(ValueError, match="start_step must be"):
        pipeline.dataset(-1)


def small_model(batch):
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in batch[0]
    }
    embed = keras.layers.Embedding(500, 4)
    context = ops.mean(embed(inputs["encoder_token_ids"]), 1, keepdims=True)
    real = [inputs[f"{side}coder_padding_mask"] > 0 for side in ("en", "de")]
    context *= ops.mean(ops.cast(real[0], "float32"))
    hidden = embed(inputs["decoder_token_ids"]) + context
    hidden *= ops.cast(real[1], "float32")[..., None]
    model = keras.Model(inputs, keras.layers.Dense(500)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile("sgd", loss)
    return model


def test_fit_takes_the_steps_in_order(encoded):
    pipeline = build(encoded)
    held_out = HeldOut(encoded, SpanCorruption(500), 32, batch_size=16)
    fitted = small_model(pipeline.batch(0))
    stepped = keras.models.clone_model(fitted)
    stepped.compile("sgd", fitted.loss)
    stepped.set_weights(fitted.get_weights())
    history = fitted.fit(
        pipeline.dataset(3),
        steps_per_epoch=4,
        epochs=2,
        validation_data=held_out.dataset(),
        verbose=0,
    ).history
    for step in range(3, 11):
        stepped.train_on_batch(*pipeline.batch(step))
    for a, b in zip(fitted.get_weights(), stepped.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    expected = fitted.evaluate(held_out.dataset(), verbose=0)
    assert history["val_loss"][1] == pytest.approx(expected, rel=1e-6)
    assert history["val_loss"][1] < history["val_loss"][0]


def domains_of(pipeline, corpus, steps):
    """The domain of each row; tokens of `make_corpus` tell their document."""
    ids = np.concatenate(
        [pipeline.batch(i)[0]["encoder_token_ids"][:, 0] for i in steps]
    )
    document = np.searchsorted(corpus.offsets, ids - 10, side="right") - 1
    return corpus.domain[document]


@pytest.mark.parametrize("temperature, rates", [(1, [0.2, 0.8]), (2, [1 / 3])])
def test_a_temperature_shares_rows_out_by_domain(
    make_corpus, temperature, rates
):
    corpus = make_corpus([160, 320, 320])
    corpus = corpus._replace(
        domain=np.array([0, 1, 1], np.int32), domains=("a", "b")
    )
    settings = {"packing": "none", "temperature": temperature, "seed": 1}
    pipeline = Pipeline(corpus, PrefixLM(), 5, batch_size=40, **settings)
    assert pipeline.num_rows == 45
    found = domains_of(pipeline, corpus, range(40))
    assert (found == 0).mean() == pytest.approx(rates[0], abs=0.03)
    # Pure functions of the step, other than those without a temperature.
    again = Pipeline(corpus, PrefixLM(), 5, batch_size=40, **settings)
    assert same(again.batch(7), pipeline.batch(7))
    assert again.fingerprint() == pipeline.fingerprint()
    plain = Pipeline(corpus, PrefixLM(), 5, batch_size=40, packing="none")
    assert plain.fingerprint() != pipeline.fingerprint()


def test_a_temperature_needs_rows_of_one_domain_each(make_corpus):
    corpus = make_corpus([60, 1])._replace(
        domain=np.array([0, 1], np.int32), domains=("a", "b")
    )
    with pytest.raises(ValueError, match="packing='segments'"):
        Pipeline(corpus, PrefixLM(), 5, temperature=2)
    with pytest.raises(ValueError, match="of each domain; received none of b"):
        Pipeline(corpus, PrefixLM(), 5, packing="none", temperature=2)
