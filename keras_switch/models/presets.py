"""Where the presets of this package lie: `presets/` beside it, or inside it."""

import os
from typing import Any

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# An installed wheel carries the folder, a checkout has it beside the package.
_FOLDERS = (
    os.path.join(_PACKAGE, "presets"),
    os.path.join(os.path.dirname(_PACKAGE), "presets"),
)
_WEIGHTS = ("model.weights.h5", "model.weights.json")


class PresetListing:
    """A class attribute that lists the presets known by a short name."""

    def __get__(self, instance: Any, owner: Any) -> dict[str, dict]:
        return {name: {"path": path} for name, path in preset_paths().items()}


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


def resolve_preset(preset: Any, load_weights: bool = False) -> str:
    """Turns a short name into a folder, and leaves folders and handles be.

    Args:
        preset: A short name, a folder, or a handle such as `"hf://..."`.
        load_weights: Whether the caller is going to load weights.

    Returns:
        A folder or a handle.

    Raises:
        ValueError: if `preset` is none of these, or has no weights to load.
    """
    try:
        preset = os.fspath(preset)
    except TypeError:
        raise ValueError(
            f"preset must be a name or a path; received preset={preset!r}."
        ) from None
    paths = preset_paths()
    folder = paths.get(preset, preset)
    if "://" in folder:
        return folder
    if not os.path.isdir(folder):
        raise ValueError(
            'preset must be a folder, a handle such as "hf://owner/name" or '
            f"one of {', '.join(paths)}; received preset={preset!r}."
        )
    has_weights = any(has_file(folder, name) for name in _WEIGHTS)
    if load_weights and has_file(folder, "config.json") and not has_weights:
        raise ValueError(
            f"Preset {preset!r} carries no weights. Pass load_weights=False to "
            "start from random ones."
        )
    return folder


def has_file(preset: str, name: str) -> bool:
    """Whether a local preset folder holds a file; true for remote handles."""
    return "://" in preset or os.path.isfile(os.path.join(preset, name))
