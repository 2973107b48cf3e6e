"""Where presets lie: in this package, in folders, and in other layouts."""

import functools
import os
from typing import Any, NamedTuple

from keras_switch.files import read_json

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# An installed wheel carries the folder, a checkout has it beside the package.
_FOLDERS = (
    os.path.join(_PACKAGE, "presets"),
    os.path.join(os.path.dirname(_PACKAGE), "presets"),
)


class Layout(NamedTuple):
    """How to read model folders that are not Keras presets."""

    matches: Any  # folder -> bool
    load_backbone: Any  # folder, load_weights, **arguments -> a backbone
    has_tokenizer: Any  # folder -> bool
    load_tokenizer: Any  # folder, **arguments -> SwitchTokenizer
    download: Any  # handle -> folder, which may hold a Keras preset
    export: Any  # model, folder -> None


# By the start of a handle. What reads them lies above this module, and enters
# itself here when the package is imported.
LAYOUTS: dict[str, Layout] = {}


class Found(NamedTuple):
    """Where a preset is, and how to read it."""

    folder: str
    layout: Layout | None  # None: it is a Keras preset
    built_in: bool  # whether it is of this package


def find_preset(preset: Any) -> Found:
    """Finds a preset; one behind a handle is downloaded.

    Args:
        preset: A short name, a folder, or a handle such as `"hf://..."`.

    Returns:
        A `Found`.

    Raises:
        ValueError: if `preset` is none of these.
    """
    folder = resolve_preset(preset)
    if "://" in folder:
        start = f"{folder.partition('://')[0]}://"
        if start not in LAYOUTS:
            raise ValueError(
                f"A handle must start with {' or '.join(LAYOUTS)}; received "
                f"preset={preset!r}. Download what others name, and pass the "
                "folder."
            )
        folder = os.fspath(LAYOUTS[start].download(folder))
    real = os.path.realpath(folder)
    built_in = real in map(os.path.realpath, preset_paths().values())
    for layout in LAYOUTS.values():
        if layout.matches(folder):
            return Found(folder, layout, built_in)
    return Found(folder, None, built_in)


class PresetListing:
    """A class attribute that lists the presets known by a short name, of
    models that are, or have, the same backbone."""

    def __get__(self, instance: Any, owner: Any) -> dict[str, dict]:
        backbone = getattr(owner, "backbone_cls", None) or owner
        wanted = f"keras_switch>{backbone.preset_name}"
        return {
            name: {"path": path}
            for name, path in preset_paths().items()
            if _class_of(path) == wanted
        }


@functools.cache
def _class_of(folder):
    return read_json(os.path.join(folder, "config.json"))["registered_name"]


def preset_paths() -> dict[str, str]:
    """The presets known by a short name.

    Returns:
        A dict from short names, sorted, to folders.
    """
    for folder in _FOLDERS:
        if os.path.isfile(os.path.join(folder, "switch_base_8", "config.json")):
            return {
                name: os.path.join(folder, name)
                for name in sorted(os.listdir(folder))
                if os.path.isfile(os.path.join(folder, name, "config.json"))
            }
    return {}


def resolve_preset(preset: Any) -> str:
    """Turns a short name into a folder, and leaves folders and handles be.

    Args:
        preset: A short name, a folder, or a handle such as `"hf://..."`.

    Returns:
        A folder or a handle.

    Raises:
        ValueError: if `preset` is none of these.
    """
    try:
        preset = os.fspath(preset)
    except TypeError:
        raise ValueError(
            f"preset must be a name or a path; received preset={preset!r}."
        ) from None
    paths = preset_paths()
    folder = paths.get(preset, preset)
    if "://" not in folder and not os.path.isdir(folder):
        raise ValueError(
            'preset must be a folder, a handle such as "hf://owner/name" or '
            f"one of {', '.join(paths)}; received preset={preset!r}."
        )
    return folder
