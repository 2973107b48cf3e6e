import contextlib

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch.ops import layout
from keras_switch_train import distill, finetune, flags, mesh
from tests.train.flags_test import run

PRETRAIN = ("pretrain", "--workdir=x", "--corpus=" + __file__)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mesh=batch"], "give its size, as in batch:4,model:2"),
        (["--mesh=batch:0"], "received 'batch:0'"),
        (["--mesh=batch:2,batch:2"], "name each axis once"),
        (["--mesh=model:2"], "must have an axis called batch"),
        (["--mesh=batch:2,modle:2", "--layout=expert"], "there are 1"),
        (["--mesh=batch:2", "--backend=torch"], "needs --backend=jax"),
        (
            ["--mesh=batch:2", "--backend=tensorflow", "--num_processes=2"]
            + ["--minutes=0", "--steps=1"],
            "received tensorflow and --num_processes=2",
        ),
        (["--num_processes=2", "--minutes=0", "--steps=1"], "--mesh must be"),
        (["--num_processes=2"], "--minutes must be 0 with --num_processes"),
        (
            ["--num_processes=2", "--minutes=0", "--steps=1", "--mesh=batch:2"],
            "--coordinator must be given",
        ),
        (["--mesh=batch:2", "--process_id=3"], "must be below"),
        (["--layout=diagonal"], "--layout=diagonal"),
    ],
)
def test_bad_meshes_are_one_line_and_exit_code_2(arguments, message, tmp_path):
    done = run(*PRETRAIN, "--backend=jax", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pretrain.py: ") and message in last


def test_a_mesh_says_how_to_try_it_on_a_processor(tmp_path):
    done = run(*PRETRAIN, "--backend=jax", "--mesh=batch:2", cwd=tmp_path)
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=2" in done.stderr


@pytest.fixture
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])


@pytest.mark.parametrize("binary", (finetune, distill))
@pytest.mark.parametrize("backend", ("tensorflow", "torch"))
def test_other_binaries_need_jax(binary, backend, parsed, tmp_path):
    where = {"backend": backend, "workdir": str(tmp_path)}
    with flagsaver.flagsaver(mesh=["batch:2"], **where):
        with pytest.raises(flags.UsageError, match="--mesh needs --backend=j"):
            binary.main()


def test_batches_that_the_mesh_does_not_divide(parsed, monkeypatch):
    with flagsaver.flagsaver(batch_size=3):
        mesh.check_batch_size()  # there is none
        monkeypatch.setattr("keras_switch.ops.layout.data_shards", lambda: 2)
        with pytest.raises(flags.UsageError, match="--batch_size must be a m"):
            mesh.check_batch_size()


def test_nothing_is_generated_over_a_mesh_of_tensorflow(monkeypatch):
    with mesh.eager() as found:
        assert found is None  # as it was
    monkeypatch.setattr(layout, "by_dtensor", lambda: True)
    monkeypatch.setattr(
        layout, "undistributed", lambda: contextlib.nullcontext("one device")
    )
    with mesh.eager() as found:
        assert found == "one device"


def test_plan_needs_a_mesh(tmp_path):
    done = run("plan", "--backend=jax", cwd=tmp_path)
    assert done.returncode == 2 and "--mesh must be given" in done.stderr


def test_plan_says_what_a_step_costs(tmp_path):
    done = run(
        "plan",
        "--backend=jax",
        "--mesh=batch:2,model:2",
        "--batch_size=4",
        "--input_length=16",
        f"--workdir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "on 4 virtual devices (batch 2, model 2)" in said
    assert "fits in 32 GB" in said
    (line,) = (x for x in said.splitlines() if "all-to-all" in x)
    assert line.split()[1] == "8"
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("binary", ("plan", "growth"))
def test_flags_of_xla_are_kept(binary, tmp_path):
    mesh = {"plan": ["--mesh=batch:2"], "growth": ["--devices=2"]}[binary]
    where = f"--workdir={tmp_path}"
    done = run(binary, *mesh, where, cwd=tmp_path, XLA_FLAGS="--xla_nonsense")
    # XLA ends a process that has a flag it does not know.
    assert done.returncode != 0 and "--xla_nonsense" in done.stderr
