"""SavedModels are run by TensorFlow, without Keras."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_switch.convert import export_saved_model
from tests.models import generating, tiny

ON_TORCH = keras.backend.backend() == "torch"
needs_saved_models = pytest.mark.skipif(
    ON_TORCH, reason="torch has no SavedModel"
)
SERVE = """
import sys
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1])
call = served.signatures["serving_default"]
inputs = {k: tf.constant(v) for k, v in np.load(sys.argv[2]).items()}
outputs = {k: v.numpy() for k, v in call(**inputs).items()}
assert "keras_switch" not in sys.modules
np.savez(sys.argv[3], **outputs)
"""

SERVE_TEXT = """
import json, sys
import tensorflow as tf
import tensorflow_text  # registers its operations
served = tf.saved_model.load(sys.argv[1])
call = served.signatures["generate_text"]
texts = call(texts=tf.constant(json.loads(sys.argv[2])))["texts"]
assert "keras_switch" not in sys.modules
print(json.dumps([text.decode() for text in texts.numpy()]))
"""


def serve(folder, inputs, tmp_path):
    """The default signature's outputs, from a process without Keras."""
    np.savez(tmp_path / "inputs.npz", **inputs)
    subprocess.run(
        [sys.executable, "-c", SERVE]
        + [str(folder), str(tmp_path / "inputs.npz")]
        + [str(tmp_path / "outputs.npz")],
        check=True,
    )
    return dict(np.load(tmp_path / "outputs.npz"))


@needs_saved_models
def test_an_encoder_decoder_with_any_number_of_rows(rng, tmp_path):
    lm = generating.lm(**generating.SPARSE)
    lm.compile(sampler="greedy")
    x = tiny.inputs(rng, batch_size=3, encoder_length=8, decoder_length=6)
    x["decoder_token_ids"][:] = 0
    x["decoder_padding_mask"][:] = np.arange(6) == 0
    stop = (80, 130)
    wanted = lm.generate(x, stop_token_ids=stop)
    assert len(np.unique(wanted["decoder_token_ids"])) >= 3
    export_saved_model(
        lm,
        tmp_path / "1",
        input_length=8,
        max_length=6,
        stop_token_ids=stop,
    )
    inputs = {n: array for n, array in x.items() if n.startswith("encoder")}
    found = serve(tmp_path / "1", inputs, tmp_path)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    assert found["decoder_finite_mask"].all()


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="one backend is enough"
)
def test_a_decoder_alone_goes_on_from_its_prompt(rng, tmp_path):
    lm = tiny.causal_lm("mixtral")
    lm.compile(sampler="greedy")
    x = tiny.causal_inputs(rng, batch_size=2, length=4)
    x = {n: np.pad(array, ((0, 0), (0, 5))) for n, array in x.items()}
    wanted = lm.generate(x, stop_token_ids=None)
    export_saved_model(
        lm, tmp_path / "1", batch_size=2, max_length=9, stop_token_ids=None
    )
    found = serve(tmp_path / "1", x, tmp_path)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def serve_text(folder, texts):
    """Answers of `generate_text`, from a process without Keras."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE_TEXT, str(folder), json.dumps(texts)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_saved_models
def test_strings_go_in_and_come_out(tmp_path):
    # More rows of logits than there are pieces: their ids are unknown.
    lm = generating.lm(tiny.preprocessor(), vocabulary_size=400)
    lm.compile(sampler="greedy")
    wanted = lm.generate(generating.TEXTS, max_length=6)
    assert len(set(wanted)) >= 3 and any("\u2047" in text for text in wanted)
    export_saved_model(
        lm, tmp_path / "1", input_length=12, max_length=6, text=True
    )
    assert serve_text(tmp_path / "1", generating.TEXTS) == wanted
    # One that is too long is cut.
    lm.preprocessor.encoder_sequence_length = 12
    long = "the brown dog walks " * 9
    wanted = lm.generate([long], max_length=6, truncate=True)
    assert serve_text(tmp_path / "1", [long]) == wanted


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="one backend is enough"
)
def test_prompts_of_a_decoder_alone_are_strings(tmp_path):
    lm = tiny.causal_lm(preprocessor=tiny.causal_preprocessor())
    lm.compile(sampler="greedy")
    wanted = lm.generate(["a dog", "the man walks"], max_length=9)
    export_saved_model(lm, tmp_path / "1", 2, max_length=9, text=True)
    assert serve_text(tmp_path / "1", ["a dog", "the man walks"]) == wanted


@needs_saved_models
def test_what_cannot_be_served_is_refused(tmp_path):
    lm = tiny.lm()
    lm.compile(sampler="greedy")
    with pytest.raises(ValueError, match="stop_token_ids must be None or ids"):
        export_saved_model(lm, tmp_path / "1")
    with pytest.raises(ValueError, match="max_length"):
        export_saved_model(
            lm, tmp_path / "1", max_length=1, stop_token_ids=None
        )
    with pytest.raises(ValueError, match="text must be False"):
        export_saved_model(lm, tmp_path / "1", stop_token_ids=None, text=True)
    lm.compile(sampler="top_k")
    with pytest.raises(ValueError, match="sampler must not draw at random"):
        export_saved_model(lm, tmp_path / "1", stop_token_ids=None)
    limited = tiny.lm(eval_capacity_factor=1.0)
    limited.compile(sampler="greedy")
    with pytest.raises(ValueError, match="batch_size must be 1"):
        export_saved_model(limited, tmp_path / "1", stop_token_ids=None)
    assert not (tmp_path / "1").exists()
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "mine.txt").write_text("mine")
    lm.compile(sampler="greedy")
    with pytest.raises(FileExistsError, match="must not exist"):
        export_saved_model(lm, tmp_path / "2", stop_token_ids=None)


@pytest.mark.skipif(not ON_TORCH, reason="the others have SavedModels")
def test_torch_says_what_to_do_instead(tmp_path):
    lm = tiny.lm()
    with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
        export_saved_model(lm, tmp_path / "1")
