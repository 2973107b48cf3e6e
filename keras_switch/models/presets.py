"""Where presets lie: in this package, in folders, and in other layouts."""

import json
import os
from typing import Any, NamedTuple

import keras

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# An installed wheel carries the folder, a checkout has it beside the package.
_FOLDERS = (
    os.path.join(_PACKAGE, "presets"),
    os.path.join(os.path.dirname(_PACKAGE), "presets"),
)
_WEIGHTS = ("model.weights.h5", "model.weights.json")


class Layout(NamedTuple):
    """How to read model folders that are not Keras presets."""

    matches: Any  # folder -> bool
    load_backbone: Any  # folder, load_weights, **arguments -> SwitchBackbone
    has_tokenizer: Any  # folder -> bool
    load_tokenizer: Any  # folder, **arguments -> SwitchTokenizer
    download: Any  # handle -> folder, or None where it is a Keras preset
    export: Any  # model, folder -> None


# By the start of a handle. What reads them lies above this module, and enters
# itself here when the package is imported.
LAYOUTS: dict[str, Layout] = {}


def find_layout(preset: Any) -> tuple[Layout, str] | None:
    """The layout of a folder or a handle that is no Keras preset.

    A handle is downloaded to find out.

    Args:
        preset: As for `resolve_preset`.

    Returns:
        The layout and the folder, or `None` if it is a Keras preset or not
        there.
    """
    folder = preset_paths().get(preset, preset) if preset else preset
    for start, layout in LAYOUTS.items():
        if isinstance(folder, str) and folder.startswith(start):
            found = layout.download(folder)
            return found and (layout, found)
        is_path = isinstance(folder, str | os.PathLike)
        if is_path and os.path.isdir(folder) and layout.matches(folder):
            return layout, os.fspath(folder)
    return None


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


def settle_dtype(folder: str, arguments: dict) -> None:
    """Names the default dtype policy where KerasHub fails to.

    It loads presets of any float dtype in the default policy, but does not
    know the mixed ones for floats.

    Args:
        folder: What `resolve_preset` returned.
        arguments: Arguments of `from_preset`; `dtype` is set in it.
    """
    local = "://" not in folder and has_file(folder, "config.json")
    if arguments.get("dtype") is not None or not local:
        return
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        saved = json.load(file).get("config", {}).get("dtype")
    if isinstance(saved, dict):
        saved = saved.get("config", {}).get("name")
    if str(saved).startswith("mixed_"):
        arguments["dtype"] = keras.config.dtype_policy()


def has_file(preset: str, name: str) -> bool:
    """Whether a local preset folder holds a file; true for remote handles."""
    return "://" in preset or os.path.isfile(os.path.join(preset, name))
