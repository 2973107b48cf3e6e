"""The guard: what it must not let pass."""

import os
import pickle
import subprocess
import sys
import time

import keras
import pytest

from keras_switch.files import CheckpointError
from tests.faults import runner
from tests.faults.guard import digest, guarded, refused
from tests.faults.runner import Case


def held(tmp_path, block):
    """What became of a block under the guard, in a child."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inside").write_text("inside")
    (folder / "evil.py").write_text("import builtins; builtins.evil = True")
    (tmp_path / "outside").write_text("secret")

    def run():
        with guarded(folder, seconds=2):
            try:
                block(folder)
            except PermissionError:
                pass  # it is held to what it did all the same

    (tmp_path / "own").mkdir()
    return runner.run_case(Case("guarded", run), tmp_path / "own").note


def imports_from(folder):
    sys.path.insert(0, str(folder))
    import evil  # noqa: F401


def unpickles(folder):
    pickle.loads(pickle.dumps(os.getpid))


@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="a process that has computed on JAX or TensorFlow may not fork",
)
@pytest.mark.parametrize(
    ("block", "note"),
    [
        (lambda f: (f / "inside").read_text(), ""),
        (lambda f: (f.parent / "outside").read_text(), "outside"),
        (lambda f: (f / ".." / "outside").read_text(), "outside"),
        (lambda f: (f / "inside").write_text("x"), "inside to write"),
        (lambda f: (f.parent / "new").write_text("x"), "new to write"),
        (lambda f: (f / "inside").unlink(), "os.remove"),
        (lambda f: os.system("true"), "os.system"),
        (lambda f: subprocess.run(["true"]), "subprocess.Popen"),
        (unpickles, "pickle.find_class"),
        (imports_from, "code in"),
        (lambda f: len(b"x" * (100 << 20)), "it took 1"),
        (lambda f: time.sleep(2.5), "it took 2.5"),
    ],
)
def test_what_it_notices(tmp_path, block, note):
    found = held(tmp_path, block)
    assert note in found and bool(found) == bool(note)


def model():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


def clear(path):
    raise CheckpointError(f"{path}/config.json", "a", "b", "c")


def test_a_clear_refusal(tmp_path):
    assert refused(clear, tmp_path, model(), seconds=5).field == "a"


def test_what_is_no_clear_refusal(tmp_path):
    ours = model()

    def changes(path):
        ours.weights[0].assign(ours.weights[0] + 1)
        clear(path)

    def of_another_file(path):
        raise CheckpointError("/etc/passwd", "a", "b", "c")

    def long(path):
        raise CheckpointError(f"{path}/a", "a", "b" * 2000, "c")

    def with_another_policy(path):
        keras.config.set_dtype_policy("float16")
        clear(path)

    for load, message in (
        (lambda path: None, "it was loaded"),
        (changes, "the model changed"),
        (of_another_file, "the error names"),
        (long, "bbb"),
        (with_another_policy, ""),
    ):
        with pytest.raises(AssertionError, match=message):
            refused(load, tmp_path, ours, seconds=5)
    with pytest.raises(ValueError, match="another error"):
        refused(_another, tmp_path, ours, seconds=5)


def _another(path):
    raise ValueError("another error")


def test_the_digest_is_of_every_weight():
    one = model()
    before = digest(one)
    assert digest(one) == before
    one.weights[-1].assign(one.weights[-1] + 1e-7)
    assert digest(one) != before
