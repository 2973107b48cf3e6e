"""Damages checkpoints on the disk, and looks what is loaded.

Two checkpoints of a small training are there; the newest is damaged. Survived
means: it is moved aside with a warning and the one before is used, bit by bit.
A disk that is full while a checkpoint is written ends in an error, and what
was there before is untouched.
"""

import contextlib
import errno
import functools
import pathlib
import resource
import shutil
import signal
import warnings

import numpy as np

from keras_switch.resume.store import CheckpointStore
from tests.faults.runner import Case

_FLIPS, _FLIPS_PER_CASE = 1000, 50
_BLOCK, _TRUNCATIONS, _SIZES = 4096, 64, 10
_FILES = (
    "arrays-00000-of-00001.safetensors",
    "record.json",
    "SHA256SUMS",
)


def cases(quick: bool) -> list[Case]:
    """1,000 bit flips, each block zeroed, 64 truncations, 10 full disks."""
    flips = range(0, _FLIPS, _FLIPS_PER_CASE)
    found = [
        Case(
            f"bit flips {i} to {i + _FLIPS_PER_CASE - 1}",
            functools.partial(_survives_all, functools.partial(_flips, i)),
        )
        for i in (flips[:1] if quick else flips)
    ]
    found += [
        Case(
            f"every 4 KiB block of {name} zeroed",
            functools.partial(
                _survives_all, functools.partial(_zeroed_blocks, name)
            ),
        )
        for name in _FILES[quick:]
    ]
    found += [
        Case(
            f"{name} cut at {_TRUNCATIONS} points",
            functools.partial(
                _survives_all, functools.partial(_truncated, name)
            ),
        )
        for name in _FILES[quick:]
    ]
    found += [
        Case(
            f"disk full at {i} tenths of a checkpoint",
            functools.partial(_survives_full_disk, i / _SIZES),
        )
        for i in (range(5, 6) if quick else range(_SIZES))
    ]
    return found


def _arrays(step):
    rng = np.random.default_rng(step)
    arrays = {
        f"model/{i:04d}/kernel": rng.normal(size=(40, 50)).astype("float32")
        for i in range(30)
    }
    return arrays | {"seeds/0000/state": np.array([step, 1], "uint32")}


def _record(step):
    return {"epoch": step, "batch": 0, "history": list(range(300))}


def _write(store, step):
    return store.write(step, _record(step), _arrays(step))


def _survives_all(damages):
    """Each damage on a fresh copy of two checkpoints."""
    store = CheckpointStore("good", keep=2)
    newest = [_write(store, step) for step in (1, 2)][-1]
    count = 0
    for name, content in damages(newest):
        shutil.copytree("good", "run")
        run = CheckpointStore("run", keep=2)
        path = pathlib.Path("run", newest.name, name)
        if content == path.read_bytes():
            shutil.rmtree("run")
            continue  # the block was zero
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _is_checkpoint(run.newest(), 1)
        assert any("damaged" in str(w.message) for w in caught), "no warning"
        assert pathlib.Path("run", f"damaged-{newest.name}").is_dir()
        shutil.rmtree("run")
        count += 1
    assert count, "nothing was damaged"


def _is_checkpoint(checkpoint, step):
    assert checkpoint.step == step, f"step {checkpoint.step} was used"
    arrays = checkpoint.arrays
    for name, array in _arrays(step).items():
        found = np.asarray(arrays[name])
        assert found.tobytes() == array.tobytes(), f"another {name}"


def _flips(start, folder):
    """Bits drawn evenly from all files of a checkpoint."""
    contents = {name: (folder / name).read_bytes() for name in _FILES}
    sizes = [len(content) for content in contents.values()]
    for seed in range(start, start + _FLIPS_PER_CASE):
        rng = np.random.default_rng(seed)
        # Each third in another file: the small ones would never be hit.
        name, size = _FILES[seed % 3], sizes[seed % 3]
        damaged = bytearray(contents[name])
        damaged[rng.integers(size)] ^= 1 << int(rng.integers(8))
        yield name, bytes(damaged)


def _zeroed_blocks(name, folder):
    content = (folder / name).read_bytes()
    for start in range(0, len(content), _BLOCK):
        block = content[start : start + _BLOCK]
        zeros = bytes(len(block))
        yield name, content[:start] + zeros + content[start + len(block) :]


def _truncated(name, folder):
    content = (folder / name).read_bytes()
    lengths = np.linspace(0, len(content) - 1, _TRUNCATIONS).astype(int)
    for length in sorted(set(lengths.tolist())):
        yield name, content[:length]


def _survives_full_disk(fraction):
    store = CheckpointStore("run", keep=2)
    whole = _write(store, 1)
    size = max((whole / name).stat().st_size for name in _FILES)
    try:
        with _largest_file(int(size * fraction)):
            _write(store, 2)
    except OSError as error:
        assert error.errno in (errno.EFBIG, errno.ENOSPC), error
    else:
        raise AssertionError("a checkpoint was written without room for it")
    left = sorted(path.name for path in pathlib.Path("run").iterdir())
    assert left == [whole.name], f"{left} are left"
    _is_checkpoint(store.newest(), 1)
    _write(store, 2)
    _is_checkpoint(store.newest(), 2)


@contextlib.contextmanager
def _largest_file(size):
    """Files cannot grow beyond so many bytes, as on a disk with no more."""
    # The kernel says it by a signal, whose default is to kill.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
