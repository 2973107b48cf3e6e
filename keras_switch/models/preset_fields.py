"""Fields of a preset's JSON files: which there are, and what they may be."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras_switch.files import CheckpointError

# What Keras writes of an object. Its class is never looked up by these.
_OBJECT = {"module", "class_name", "config", "registered_name"}
_LARGEST = 2**31 - 1
_WORDS = {int: "an int", float: "a number", bool: "true or false", str: "text"}


class Field(NamedTuple):
    """What one field may be; bounds of ints are inclusive."""

    kind: type  # int, float, bool or str
    at_least: int = -_LARGEST
    at_most: int = _LARGEST
    choices: tuple[str, ...] = ()
    optional: bool = False  # whether it may be null
    required: bool = False  # whether it must be there


class Place(NamedTuple):
    """Where a value stands, for messages."""

    file: Any
    field: str  # "" for the file itself

    def __truediv__(self, name: str) -> "Place":
        """The place of a field of the value that stands here."""
        return Place(self.file, f"{self.field}.{name}".removeprefix("."))

    def refuse(
        self, expected: Any, received: Any, advice: str = ""
    ) -> CheckpointError:
        """The error that says what was wanted here and what came."""
        text = received if isinstance(received, str) else repr(received)
        if len(text) > 100:
            text = f"{text[:100]}..."
        return CheckpointError(
            self.file, self.field or "content", expected, text, advice
        )


def check_fields(
    place: Place, config: Mapping[str, Any], fields: Mapping[str, Field]
) -> dict[str, Any]:
    """Refuses a field that is unknown, missing, or not what it may be.

    Args:
        place: Where `config` stands.
        config: Names and values, as they came.
        fields: The fields that there are.

    Returns:
        `config`, as a dict.

    Raises:
        CheckpointError: naming the field.
    """
    check_names(place, config, fields)
    for name, value in config.items():
        _check(place / name, value, fields[name])
    return dict(config)


def check_names(place: Place, config: Any, fields: Mapping[str, Field]) -> None:
    """Refuses what is no object, and unknown and missing fields.

    Raises:
        CheckpointError: naming the field.
    """
    if not isinstance(config, Mapping):
        raise place.refuse("an object", config)
    for name in config:
        if name not in fields:
            raise (place / name).refuse("absent: there is no such field", "it")
    for name, field in fields.items():
        if field.required and name not in config:
            raise (place / name).refuse("there", "nothing")


def _check(place, value, field):
    if value is None and field.optional:
        return
    kinds = (int, float) if field.kind is float else (field.kind,)
    right = isinstance(value, kinds)
    # To Python, true is an int.
    if isinstance(value, bool) and field.kind is not bool:
        right = False
    if not right:
        raise place.refuse(_WORDS[field.kind], value)
    if field.choices and value not in field.choices:
        raise place.refuse(f"one of {', '.join(field.choices)}", value)
    # An int that stands for a float may have thousands of digits.
    if type(value) is int and not field.at_least <= value <= field.at_most:
        bounds = f"from {field.at_least} to {field.at_most}"
        raise place.refuse(bounds, value)


def check_object(
    place: Place, value: Any, names: Mapping[str, str]
) -> Mapping[str, Any]:
    """The config of an object as Keras serializes it.

    Args:
        place: Where it stands.
        value: What came.
        names: The class names that it may have, by registered name.

    Returns:
        Its `config`, which is an object; nothing of it is checked.

    Raises:
        CheckpointError: if it is another object, or none.
    """
    if not isinstance(value, Mapping) or set(value) != _OBJECT:
        fields = ", ".join(sorted(_OBJECT))
        raise place.refuse(f"an object of the fields {fields}", value)
    name = value["registered_name"]
    if not isinstance(name, str) or name not in names:
        wanted = " or ".join(names)
        raise (place / "registered_name").refuse(wanted, name)
    if value["class_name"] != names[name]:
        raise (place / "class_name").refuse(names[name], value["class_name"])
    # Keras writes null for a class of a script or a notebook.
    if not isinstance(value["module"], str | None):
        raise (place / "module").refuse("text or null", value["module"])
    if not isinstance(value["config"], Mapping):
        raise (place / "config").refuse("an object", value["config"])
    return value["config"]


def check_name(place: Place, value: Any) -> None:
    """Refuses what cannot be the name of a model or a layer.

    Raises:
        CheckpointError: if it is no short text, or has a slash in it.
    """
    right = isinstance(value, str) and 0 < len(value) <= 200
    if not right or "/" in value or not value.isprintable():
        raise place.refuse("a name of at most 200 letters without /", value)
