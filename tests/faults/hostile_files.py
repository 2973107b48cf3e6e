"""Preset folders whose files or manifest are not what they must be."""

import json
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import NamedTuple

from keras_switch.files import MANIFEST, manifest_of

SECRET = "secret"


class Fault(NamedTuple):
    """One way to spoil a preset.

    Attributes:
        name: What is wrong.
        spoil: Does it to a folder.
        names: What the error's file or field must name.
        load: Which loader, by its name in the suite.
        sealed: Whether a true manifest is written afterwards.
        preset: Which preset is spoilt.
    """

    name: str
    spoil: Callable[[pathlib.Path], None]
    names: str
    load: str = ""
    sealed: bool = True
    preset: str = "good"


def here():
    """The case's own folder."""
    return pathlib.Path.cwd()


def plant_secret():
    """A pipe beside the folder: whoever opens it hangs, and is caught."""
    os.mkfifo(here() / SECRET)


def seal(folder):
    """Writes a manifest of what is there, true as far as it can be."""
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.stat().st_size < 2**26
    ]
    names = [name for name in names if name != MANIFEST]
    content = manifest_of(folder, names)
    # Whatever is no file is listed as one.
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        known = name.endswith((".json", ".h5", ".spm"))
        if name not in names and known and name != MANIFEST:
            size = path.stat().st_size if path.is_file() else 5
            content["files"][name] = {"size": size, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps(content))


def change(name, edit):
    """A function that edits a JSON file of a folder in place."""

    def spoil(folder):
        content = json.loads((folder / name).read_text())
        edited = edit(content)
        content = content if edited is None else edited
        (folder / name).write_text(json.dumps(content))

    return spoil


def _entry(name, **fields):
    def edit(content):
        content["files"].setdefault(name, {"size": 1, "sha256": "0" * 64})
        content["files"][name] |= fields

    return change(MANIFEST, edit)


def _forget(name):
    return change(MANIFEST, lambda content: content["files"].pop(name) and None)


def replace(name, target, target_is_directory=False):
    """A function that puts a link in a file's place."""

    def spoil(folder):
        path = folder / name
        if path.is_dir():
            path.rename(folder.parent / "moved")
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target, target_is_directory)

    return spoil


def pipe(name):
    """A function that puts a pipe, which hangs readers, in a file's place."""

    def spoil(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return spoil


def _folder(name):
    def spoil(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def flip(name, where=0.5):
    """A function that flips a bit of a file."""

    def spoil(folder):
        data = bytearray((folder / name).read_bytes())
        data[int(len(data) * where)] ^= 4
        (folder / name).write_bytes(data)

    return spoil


def _remove(name):
    return lambda folder: (folder / name).unlink()


class _Payload:
    def __reduce__(self):
        return exec, ("import builtins; builtins.hostile_code_ran = True",)


def pickled(name):
    """A function that puts a pickle, which runs code, in a file's place."""

    def spoil(folder):
        (folder / name).write_bytes(pickle.dumps(_Payload()))

    return spoil


def _sparse(name, size):
    """A file that says it is large and takes no room."""

    def spoil(folder):
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return spoil


_VOCABULARY = "assets/tokenizer/vocabulary.spm"
_WEIGHTS = "model.weights.h5"


def faults() -> list[Fault]:
    """Faults of files."""
    return [
        *_of_the_manifest(),
        *_of_damage(),
        *_of_links(),
        *_of_files(),
    ]


def _of_the_manifest():
    long = "9" * 4000
    for name, spoil, names in (
        ("no manifest", _remove(MANIFEST), "file"),
        ("not JSON", lambda f: (f / MANIFEST).write_text("{"), "content"),
        ("empty", lambda f: (f / MANIFEST).write_text(""), "content"),
        ("a list", lambda f: (f / MANIFEST).write_text("[]"), "content"),
        ("without files", change(MANIFEST, lambda c: {"version": 1}), "man"),
        (
            "of no files",
            change(MANIFEST, lambda c: c | {"files": {}}),
            "files",
        ),
        (
            "of version 2",
            change(MANIFEST, lambda c: c | {"version": 2}),
            "version",
        ),
        (
            "with a field more",
            change(MANIFEST, lambda c: c | {"url": "http://x"}),
            "manifest",
        ),
        ("that names ../secret", _entry("../secret"), "files"),
        ("that names /etc/passwd", _entry("/etc/passwd"), "files"),
        ("that names assets/../x", _entry("assets/../config.json"), "files"),
        ("that names a.py", _entry("a.py"), "files"),
        ("that names a\\b", _entry("assets\\tokenizer"), "files"),
        ("with a wrong size", _entry("config.json", size=3), "size"),
        ("with a negative size", _entry("config.json", size=-1), "size"),
        ("with true for a size", _entry("config.json", size=True), "size"),
        (
            "with a size of 4,000 digits",
            lambda f: (f / MANIFEST).write_text(
                (f / MANIFEST)
                .read_text()
                .replace('"size": ', f'"size": {long}')
            ),
            "size",
        ),
        ("with a wrong digest", _entry("config.json", sha256="0" * 64), "con"),
        ("with a digest in MD5", _entry("task.json", sha256="0" * 32), "sha"),
        ("without task.json", _forget("task.json"), "files"),
        ("without the weights", _forget(_WEIGHTS), "files"),
        ("without the vocabulary", _forget(_VOCABULARY), "files"),
        ("that is a link", replace(MANIFEST, "../secret"), "file"),
        ("that is a pipe", pipe(MANIFEST), "file"),
    ):
        yield Fault(f"a manifest {name}", spoil, names, sealed=False)


def _of_damage():
    for part in ("config.json", _WEIGHTS, _VOCABULARY, "task.json"):
        name = f"a flipped bit in {part}"
        yield Fault(name, flip(part), part, sealed=False)
    for part in ("config.json", _WEIGHTS, _VOCABULARY, "preprocessor.json"):
        name = f"{part} missing, by the manifest"
        yield Fault(name, _remove(part), part, sealed=False)


def _of_links():
    out = f"../{SECRET}"
    for part in ("config.json", "task.json", _WEIGHTS, "tokenizer.json"):
        name = f"{part} is a link out of the folder"
        yield Fault(name, replace(part, out), part)
    vocabulary = replace(_VOCABULARY, f"../../{out}")
    yield Fault("the vocabulary is a link out", vocabulary, _VOCABULARY)
    device = replace(_VOCABULARY, "/dev/zero")
    yield Fault("the vocabulary is /dev/zero", device, _VOCABULARY)
    yield Fault(
        "the configuration is /etc/passwd",
        replace("config.json", "/etc/passwd"),
        "config.json",
    )
    yield Fault(
        "the assets are a link out",
        replace("assets", "../moved", True),
        _VOCABULARY,
    )
    yield Fault(
        "a link to itself", replace("config.json", "config.json"), "config"
    )
    spoil = replace("task.json", out)
    yield Fault(
        "a link out, and no manifest",
        lambda folder: (spoil(folder), _remove(MANIFEST)(folder)),
        "task.json",
        load="unverified",
        sealed=False,
    )


def _of_files():
    for part in ("config.json", _WEIGHTS, "tokenizer.json", _VOCABULARY):
        yield Fault(f"{part} is a pipe", pipe(part), part)
    for part in ("config.json", _WEIGHTS):
        yield Fault(f"{part} is a folder", _folder(part), part)
    yield Fault("no configuration", _remove("config.json"), "config.json")
    yield Fault("no weights", _remove(_WEIGHTS), _WEIGHTS)
    yield Fault("no vocabulary", _remove(_VOCABULARY), _VOCABULARY)
    yield Fault("weights are a pickle", pickled(_WEIGHTS), _WEIGHTS)
    yield Fault("the vocabulary is a pickle", pickled(_VOCABULARY), "spm")
    yield Fault(
        "weights of the task that are a pickle",
        pickled("task.weights.h5"),
        "task.weights.h5",
    )
    yield Fault(
        "an empty vocabulary",
        lambda f: (f / _VOCABULARY).write_bytes(b""),
        "spm",
    )
    yield Fault(
        "a vocabulary cut short",
        lambda f: (f / _VOCABULARY).write_bytes(
            (f / _VOCABULARY).read_bytes()[:-9]
        ),
        "spm",
    )
    yield Fault("a vocabulary of 65 MiB", _sparse(_VOCABULARY, 65 << 20), "spm")
    yield Fault(
        "a configuration of 9 MiB", _sparse("config.json", 9 << 20), "config"
    )
    yield Fault("weights of zeros", _sparse(_WEIGHTS, 1 << 20), _WEIGHTS)
    yield Fault("empty weights", _sparse(_WEIGHTS, 0), _WEIGHTS)
