"""Refuses versions of Keras and KerasHub that this library was not made for.

Importing it checks those that are installed.
"""

import re
from collections.abc import Mapping

import keras
import keras_hub

# The first version that is supported and the first that is not any more, as in
# pyproject.toml. KerasHub's tasks are subclassed here, and its minor releases
# change them.
SUPPORTED = {"keras": ("3.15", "4"), "keras-hub": ("0.32", "0.33")}


def check_versions(installed: Mapping[str, str]) -> None:
    """Compares what is installed with what is supported.

    Args:
        installed: Versions of all packages in `SUPPORTED`, by name.

    Raises:
        ImportError: if one is too old or too new.
    """
    for name, (first, end) in SUPPORTED.items():
        version = installed[name]
        if not _numbers(first) <= _numbers(version) < _numbers(end):
            raise ImportError(
                f"keras_switch needs {name} from {first} on and before {end}; "
                f"{version} is installed. Install one that fits: "
                f'pip install "{name}>={first},<{end}"'
            )


def _numbers(version):
    """`3.15.1.dev2` -> `(3, 15, 1)`."""
    release = re.match(r"\d+(\.\d+)*", version).group()
    return tuple(map(int, release.split(".")))


check_versions({"keras": keras.__version__, "keras-hub": keras_hub.__version__})
