"""The binary's main in this process; binaries_test runs it as a command."""

import keras
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch_train import flags, generate
from tests.models import tiny

BLANKS = "the <extra_id_4> dog"


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    keras.utils.set_random_seed(1)
    lm = tiny.lm(
        preprocessor=tiny.preprocessor(
            encoder_sequence_length=8, decoder_sequence_length=12
        ),
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    folder = str(tmp_path_factory.mktemp("preset"))
    lm.save_to_preset(folder)
    return folder


@pytest.fixture
def run(preset, capsys):
    def run(**values):
        if not absl_flags.FLAGS.is_parsed():
            absl_flags.FLAGS(["test"])
        values = {"prompt": [BLANKS, "a man"], **values}
        backend = keras.backend.backend()
        values = {"preset": preset, **values}
        with flagsaver.flagsaver(backend=backend, **values):
            generate.main()
        return capsys.readouterr().out

    return run


def test_prompts_answers_and_what_is_filled_in(run):
    blocks = run().strip().split("\n\n")
    assert len(blocks) == 2
    prompt, answer, filled = blocks[0].splitlines()
    assert prompt == f"prompt: {BLANKS}"
    assert answer.startswith("answer: ")
    assert filled.startswith("filled: the [") and filled.endswith("] dog")
    assert blocks[1].startswith("prompt: a man\nanswer:")
    assert "filled" not in blocks[1]


def test_the_seed_decides_what_is_drawn(run):
    first, again, other = (
        run(sampler="random", seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_lengths(run):
    short = run(max_new_tokens=2)
    assert short == run(max_length=3)
    assert len(short) < len(run(sampler="contrastive", max_new_tokens=30))
    with pytest.raises(flags.UsageError, match="exclude each other"):
        run(max_length=3, max_new_tokens=2)


def test_a_prompt_that_is_too_long_is_refused_or_cut(run):
    long = "the dog walks in the park"
    with pytest.raises(flags.UsageError, match="--prompt: .* at most 8 tokens"):
        run(prompt=[long])
    assert run(prompt=[long], truncate=True).startswith(f"prompt: {long}\n")


def test_a_prompt_is_needed(run):
    with pytest.raises(flags.UsageError, match="must hold some text"):
        run(prompt=[""])


def test_a_preset_without_a_tokenizer_is_refused(run, tmp_path):
    tiny.backbone(num_encoder_layers=1, num_decoder_layers=1).save_to_preset(
        str(tmp_path)
    )
    with pytest.raises(flags.UsageError, match="--preset must have a token"):
        run(preset=str(tmp_path))


def test_broken_weights_are_the_presets_fault(run, monkeypatch):
    def broken(self, *args, **kwargs):
        raise FloatingPointError("Logits are not finite.")

    monkeypatch.setattr("keras_switch.models.SwitchSeq2SeqLM.generate", broken)
    with pytest.raises(flags.UsageError, match="--preset: Logits are not"):
        run()


def test_a_decoder_alone_goes_on_with_a_text(run, tmp_path):
    lm = tiny.causal_lm(preprocessor=tiny.causal_preprocessor())
    lm.save_to_preset(str(tmp_path))
    out = run(preset=str(tmp_path), prompt=["the dog"], max_length=8)
    assert out.startswith("prompt: the dog\nanswer: the dog")
