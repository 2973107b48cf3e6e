"""Tensors in the safetensors files of a folder; pickles are never opened."""

import pathlib
import re
from typing import Any

from keras_switch.files import CheckpointError, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Tensors:
    """The tensors of a folder's safetensors files, by name.

    One file is open at a time: pages of a mapped file that were read count as
    this process's memory until it is closed.

    Args:
        folder: Holds `model.safetensors`, or its shards and their index.

    Attributes:
        shapes: Of all tensors, by name.
        dtypes: Names of their dtypes, by name.

    Raises:
        CheckpointError: if a file is missing, or is not what it must be.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.shapes, self.dtypes, self._paths = {}, {}, {}
        self._path = self._file = None
        for name, tensors in _files(folder).items():
            self._list(folder / name, tensors)

    def _open(self, path):
        if path != self._path:
            safetensors = safetensors_package()
            self.close()
            try:
                self._file = safetensors.safe_open(path, framework="np")
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(
                    path, "content", "a whole safetensors file", error
                ) from None
            self._path = path
        return self._file

    def close(self) -> None:
        """Lets go of the file that is open."""
        self._path = self._file = None

    def _list(self, path, expected):
        file = self._open(path)
        names = set(file.keys())
        if expected is not None and names != expected:
            differ = sorted(names ^ expected)[0]
            raise CheckpointError(
                path, differ, "in the file and in its index alike", "one only"
            )
        for name in names:
            part = file.get_slice(name)
            self.shapes[name] = tuple(part.get_shape())
            kind = part.get_dtype()
            self.dtypes[name] = _DTYPES.get(kind, kind)
            self._paths[name] = path

    def read(self, name: str) -> Any:
        """A tensor, in NumPy."""
        return self._open(self._paths[name]).get_tensor(name)


def safetensors_package() -> Any:
    """The package, where it is installed.

    Raises:
        ImportError: saying how to install it.
    """
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            "Checkpoints in Hugging Face layout need safetensors: "
            'pip install "keras-switch[convert]".'
        ) from None
    return safetensors


def _files(folder):
    """File names, and the tensors that the index says are in each."""
    if (folder / WEIGHTS).is_file():
        return {WEIGHTS: None}
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = read_json(folder / INDEX, max_bytes=16 << 20)
    shards = {}
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(
            folder / INDEX, "weight_map", "an object of file names", where
        )
    for name, shard in where.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CheckpointError(
                folder / INDEX,
                name,
                "in a file called model-00001-of-00002.safetensors or so",
                repr(shard),
            )
        shards.setdefault(shard, set()).add(name)
    for shard in shards:
        if not (folder / shard).is_file():
            raise CheckpointError(folder, shard, "there", "no such file")
    return shards


def _no_weights(folder):
    for name in _PICKLES:
        if (folder / name).exists():
            return CheckpointError(
                folder,
                name,
                f"{WEIGHTS}: a pickle can run code and is never opened",
                "a pickle",
                "Convert it where you trust it: "
                'AutoModelForSeq2SeqLM.from_pretrained("...")'
                '.save_pretrained("...").',
            )
    return CheckpointError(
        folder, WEIGHTS, f"there, or {INDEX}", "neither of them"
    )
