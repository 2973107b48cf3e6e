import json
import tracemalloc

import numpy as np
import pytest

pytest.importorskip("safetensors")
from safetensors.numpy import save_file  # noqa: E402

from keras_switch.convert.safetensors_files import Tensors  # noqa: E402
from keras_switch.files import CheckpointError  # noqa: E402


def write(folder, files):
    """Files of tensors, and the index of them."""
    where = {}
    for file, tensors in files.items():
        name = f"model-{file}.safetensors"
        save_file(tensors, folder / name)
        where |= dict.fromkeys(tensors, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))


ONE, TWO = "00001-of-00002", "00002-of-00002"


def test_one_file(tmp_path):
    save_file({"a": np.ones((2, 3), "float16")}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    assert tensors.shapes == {"a": (2, 3)}
    assert tensors.dtypes == {"a": "float16"}
    assert tensors.read("a").sum() == 6


def test_shards(tmp_path):
    parts = {ONE: {"a": np.zeros(3)}, TWO: {"b": np.ones(2)}}
    write(tmp_path, parts)
    tensors = Tensors(tmp_path)
    assert tensors.shapes == {"a": (3,), "b": (2,)}
    for name, total in (("b", 2), ("a", 0), ("b", 2)):
        assert tensors.read(name).sum() == total


def test_a_shard_that_holds_more_than_its_index_says(tmp_path):
    write(tmp_path, {ONE: {"a": np.zeros(3)}, TWO: {"b": np.ones(2)}})
    file = tmp_path / f"model-{TWO}.safetensors"
    save_file({"b": np.ones(2), "c": np.ones(2)}, file)
    with pytest.raises(CheckpointError) as caught:
        Tensors(tmp_path)
    assert caught.value.field == "c"


@pytest.mark.parametrize("name", ["../a.safetensors", "a.safetensors", 3])
def test_an_index_that_points_elsewhere(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        Tensors(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"code")
    with pytest.raises(CheckpointError, match="never opened"):
        Tensors(tmp_path)


def test_nothing_is_read_to_list_a_file(tmp_path):
    big = np.zeros((1 << 21,), "float32")
    save_file({"a": big}, tmp_path / "model.safetensors")
    del big
    tracemalloc.start()
    tensors = Tensors(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    tensors.close()
