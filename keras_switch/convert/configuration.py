"""What readers and writers of `config.json` share."""

from typing import Any, NamedTuple

from keras_switch.convert import rules
from keras_switch.files import CheckpointError
from keras_switch.models.preset_config import MAX_LAYERS

_LARGEST = 2**31 - 1


class Configuration(NamedTuple):
    """What a `config.json` says, in its words and in ours."""

    config: dict  # theirs
    arguments: dict  # of a backbone
    table: rules.Table
    expert_capacity: int | None  # None where there is none


class ConfigField(NamedTuple):
    """What one field may be, and what it is of ours."""

    kind: type
    default: Any
    lowest: float | None = None
    ours: str | None = None  # the argument it becomes as it is


def read_field(path: Any, config: dict, name: str, field: ConfigField) -> Any:
    """A field of a `config.json`, or its default.

    Raises:
        CheckpointError: if it is not what it must be.
    """
    value = config.get(name, field.default)
    if value is None and name == "num_decoder_layers":
        return None
    kinds = (int, float) if field.kind is float else field.kind
    is_kind = isinstance(value, kinds)
    if isinstance(value, bool) and field.kind is not bool:
        is_kind = False
    if not is_kind:
        received = "nothing" if value is None else repr(value)
        raise CheckpointError(path, name, f"a {field.kind.__name__}", received)
    if field.lowest is not None and value < field.lowest:
        raise CheckpointError(path, name, f"at least {field.lowest}", value)
    highest = MAX_LAYERS if name.endswith("_layers") else _LARGEST
    if type(value) is int and value > highest:
        raise CheckpointError(path, name, f"at most {highest}", "more")
    return value


def refuse_unless(
    condition: bool, what: str, wanted: str, received: str
) -> None:
    """Refuses a model that `transformers` cannot represent.

    Raises:
        ValueError: with the reason.
    """
    if not condition:
        raise ValueError(
            f"{what} must be {wanted} for transformers to represent the model;"
            f" received {received}."
        )
