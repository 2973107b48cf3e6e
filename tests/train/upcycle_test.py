"""The upcycle binary, each run in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.models import SwitchSeq2SeqLM
from tests.models import tiny

BINARY = Path(__file__).resolve().parents[2] / "train" / "upcycle.py"
NUMBERS = re.compile(r"^(\w+) +([0-9.]+) +([0-9.e+-]+)$", re.MULTILINE)


def run(*arguments, cwd=None):
    return subprocess.run(
        [
            sys.executable,
            str(BINARY),
            f"--backend={keras.backend.backend()}",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=dict(os.environ),
        stdin=subprocess.DEVNULL,
    )


def error_of(done):
    assert done.returncode == 2 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if "heap: " not in line]
    (line,) = [line for line in lines if line.startswith("upcycle.py: ")]
    return line


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A dense preset with a tokenizer, and a sparse one without."""
    folder = tmp_path_factory.mktemp("presets")
    keras.utils.set_random_seed(2)
    lm = tiny.lm(
        tiny.preprocessor(), encoder_sparse_step=0, decoder_sparse_step=0
    )
    lm.save_to_preset(str(folder / "dense"))
    tiny.backbone().save_to_preset(str(folder / "sparse"))
    return folder


def measured(printed):
    return {
        name: (float(loss), float(difference))
        for name, loss, difference in NUMBERS.findall(printed)
    }


@pytest.mark.slow
def test_it_writes_a_preset_and_shows_that_the_gates_are_the_difference(
    presets, tmp_path
):
    output = tmp_path / "deep" / "sparse"
    done = run(
        f"--preset={presets}/dense",
        f"--output={output}",
        "--num_experts=4",
        "--decoder_sparse_step=1",
        "--capacity_factor=2",
    )
    assert done.returncode == 0, done.stderr
    rows = measured(done.stdout)
    assert list(rows) == ["dense", "unit_gate", "switch"]
    assert rows["dense"][1] == 0
    assert rows["unit_gate"][1] < 1e-5 < 1e-2 < rows["switch"][1]
    assert rows["unit_gate"][0] == pytest.approx(rows["dense"][0], abs=1e-4)
    assert abs(rows["switch"][0] - rows["dense"][0]) > 1e-3
    totals = re.findall(r"^(\w+) +([0-9,]+) parameters", done.stdout, re.M)
    totals = {name: int(count.replace(",", "")) for name, count in totals}
    layers, kernels, experts = 3, 2 * 16 * 32, 4
    added = layers * ((experts - 1) * kernels + 16 * experts)
    assert totals["sparse"] == totals["dense"] + added

    assert [path.name for path in output.parent.iterdir()] == ["sparse"]
    assert output.stat().st_mode & 0o777 == 0o755
    dense = SwitchSeq2SeqLM.from_preset(str(presets / "dense"))
    sparse = SwitchSeq2SeqLM.from_preset(str(output))
    assert sparse.preprocessor.encoder_sequence_length == 8
    assert sparse.backbone.capacity_factor == 2.0
    assert isinstance(sparse.generate("the dog", max_length=3), str)
    ours, theirs = (
        model.backbone.decoder_transformer_layers[0].feed_forward
        for model in (sparse, dense)
    )
    for expert in ops.convert_to_numpy(ours.experts.wo.kernel):
        np.testing.assert_array_equal(
            expert, ops.convert_to_numpy(theirs.wo.kernel)
        )


@pytest.mark.slow
@pytest.mark.parametrize("router", ["unit_gate", "top_2"])
def test_normalised_gates_go_into_the_preset(router, presets, tmp_path):
    output = tmp_path / "sparse"
    output.mkdir()  # an empty folder is free to take
    done = run(
        f"--preset={presets}/dense",
        f"--output={output}",
        "--num_experts=2",
        f"--router={router}",
    )
    assert done.returncode == 0, done.stderr
    assert measured(done.stdout)[router][1] < 1e-5
    models = [
        SwitchSeq2SeqLM.from_preset(str(path))
        for path in (presets / "dense", output)
    ]
    x = tiny.inputs(np.random.default_rng(3))
    real = x["decoder_padding_mask"] > 0
    wanted, got = (tiny.logits(model, x)[real] for model in models)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset, arguments, message",
    [
        ("sparse", (), "dense must have no sparse layer"),
        ("dense", ("--encoder_sparse_step=9", "--decoder_sparse_step=0"), "at"),
        ("dense", ("--num_experts=1", "--router=top_2"), "k must be at most"),
    ],
)
def test_what_cannot_be_upcycled(preset, arguments, message, presets, tmp_path):
    output = tmp_path / "x"
    done = run(f"--preset={presets}/{preset}", f"--output={output}", *arguments)
    assert message in error_of(done)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--output must be given"),
        (("--output=x", "--preset=nope"), "received 'nope'"),
        (("--output=full", "--preset=."), "new folder, or empty; received 'fu"),
        (("--output=full/file", "--preset=."), "new folder, or empty"),
        (("--output=x", "--num_experts=0"), "--num_experts=0"),
        (("--output=x", "--noise=-1"), "--noise"),
        (("--output=x", "--router=best"), "switch|unit_gate|top_2"),
        (("--output=x", "--workdir=y"), "does not use --workdir"),
    ],
)
def test_bad_flags(arguments, message, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert message in error_of(run(*arguments, cwd=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_help():
    done = run("--help")
    assert done.returncode == 0 and not done.stderr
    assert "python train/upcycle.py" in done.stdout
    assert "  --num_experts=8\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
