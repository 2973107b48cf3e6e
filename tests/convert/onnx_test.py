"""ONNX files are run by ONNX Runtime, without Keras."""

import keras
import numpy as np
import pytest

from keras_switch.convert import export_onnx
from tests.models import tiny

ON_TORCH = keras.backend.backend() == "torch"
needs_torch = pytest.mark.skipif(not ON_TORCH, reason="torch writes ONNX")
START, STEPS = 0, 6


def session(path):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )


def run(session, inputs):
    wanted = {value.name: value.shape for value in session.get_inputs()}
    assert wanted == {n: list(a.shape) for n, a in inputs.items()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def decode(folder, x, steps, layers):
    """Greedy decoding by the files: ids `[B, T]`, logits `[B, T, V]`."""
    encoder = session(folder / "encoder.onnx")
    step = session(folder / "decoder_step.onnx")
    cross = run(encoder, {n: x[n] for n in x if n.startswith("encoder")})
    shapes = {value.name: value.shape for value in step.get_inputs()}
    caches = {
        name: np.zeros(shape, "float32")
        for name, shape in shapes.items()
        if name.startswith("self_")
    }
    assert len(caches) == len(cross) == 2 * layers
    rows = len(x["encoder_token_ids"])
    ids, logits = [np.full(rows, START, "int32")], []
    for position in range(steps):
        found = run(
            step,
            {
                "token_ids": ids[-1][:, None],
                "position": np.array(position, "int32"),
                "encoder_padding_mask": x["encoder_padding_mask"],
                **caches,
                **cross,
            },
        )
        logits.append(found.pop("logits"))
        ids.append(np.argmax(logits[-1], axis=-1).astype("int32"))
        caches = {n.removeprefix("next_"): a for n, a in found.items()}
    return np.stack(ids[:-1], 1), np.stack(logits, 1)


@needs_torch
def test_greedy_decoding_gives_the_same_tokens_and_logits(rng, tmp_path):
    lm = tiny.lm(num_encoder_layers=1, encoder_sparse_step=1)
    x = tiny.inputs(rng, batch_size=3, encoder_length=8, decoder_length=STEPS)
    x["decoder_token_ids"][:] = START
    x["decoder_padding_mask"][:] = np.arange(STEPS) == 0
    export_onnx(lm, tmp_path / "1", 3, input_length=8, max_length=STEPS)
    lm.compile(sampler="greedy")
    wanted = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    ids, logits = decode(tmp_path / "1", x, STEPS, layers=2)
    np.testing.assert_array_equal(ids, wanted)
    assert len(np.unique(wanted)) >= 3
    x["decoder_token_ids"] = wanted
    x["decoder_padding_mask"] = np.ones_like(wanted)
    np.testing.assert_allclose(
        logits, lm.predict_on_batch(x), rtol=1e-5, atol=1e-5
    )


@needs_torch
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    lm = tiny.lm()
    for arguments in (
        {"batch_size": 0},
        {"input_length": 0},
        {"max_length": 0},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=name):
            export_onnx(lm, tmp_path / "1", **arguments)
    limited = tiny.lm(eval_capacity_factor=1.0)
    with pytest.raises(ValueError, match="batch_size must be 1"):
        export_onnx(limited, tmp_path / "1", batch_size=2)
    with pytest.raises(ValueError, match="lm must compute in float32"):
        export_onnx(tiny.lm(dtype="mixed_bfloat16"), tmp_path / "1")
    with pytest.raises(ValueError, match="lm must be a SwitchSeq2SeqLM"):
        export_onnx(tiny.causal_lm(), tmp_path / "1")
    adapted = tiny.lm()
    adapted.backbone.enable_lora(2, ["wo"])
    with pytest.raises(ValueError, match="adapters must be merged"):
        export_onnx(adapted, tmp_path / "1")

    def fail(*arguments, **options):
        raise RuntimeError("no ONNX function found for aten.sort.stable")

    monkeypatch.setattr("torch.export.export", fail)
    with pytest.raises(ValueError, match="a router of it .* aten.sort.stable"):
        export_onnx(lm, tmp_path / "1")
    assert not (tmp_path / "1").exists()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="must not exist"):
        export_onnx(lm, tmp_path / "2")


@pytest.mark.skipif(ON_TORCH, reason="torch writes ONNX")
def test_other_backends_say_what_to_do_instead(tmp_path):
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=torch"):
        export_onnx(tiny.lm(), tmp_path / "1")
    assert not (tmp_path / "1").exists()
