"""Fields of JSON: what passes, and what an error says."""

import pytest

from keras_switch.files import CheckpointError
from keras_switch.models.preset_fields import (
    Field,
    Place,
    check_fields,
    check_name,
    check_object,
)

PLACE = Place("a.json", "config")
FIELDS = {
    "heads": Field(int, 1, 8, required=True),
    "rate": Field(float),
    "tied": Field(bool),
    "kind": Field(str, choices=("a", "b"), optional=True),
}


@pytest.mark.parametrize(
    "config",
    [
        {"heads": 1},
        {"heads": 8, "rate": 0.5, "tied": False, "kind": "b"},
        {"heads": 2, "rate": 1, "kind": None},
    ],
)
def test_what_passes(config):
    assert check_fields(PLACE, config, FIELDS) == config


@pytest.mark.parametrize(
    ("config", "field", "message"),
    [
        ({}, "config.heads", "must be there; received nothing"),
        ({"heads": 0}, "config.heads", "from 1 to 8; received 0"),
        ({"heads": 9}, "config.heads", "from 1 to 8"),
        ({"heads": True}, "config.heads", "an int; received True"),
        ({"heads": 2.0}, "config.heads", "an int; received 2.0"),
        ({"heads": 10**4000}, "config.heads", "from 1 to 8"),
        ({"heads": 1, "rate": "x"}, "config.rate", "a number; received x"),
        ({"heads": 1, "rate": 10**400}, "config.rate", "from -2147483647"),
        ({"heads": 1, "rate": True}, "config.rate", "a number"),
        ({"heads": 1, "rate": None}, "config.rate", "received None"),
        ({"heads": 1, "tied": 1}, "config.tied", "true or false; received 1"),
        ({"heads": 1, "kind": "c"}, "config.kind", "one of a, b; received c"),
        ({"heads": 1, "more": 1}, "config.more", "absent"),
        ([], "config", "an object"),
    ],
)
def test_what_does_not(config, field, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        check_fields(PLACE, config, FIELDS)
    assert (caught.value.file, caught.value.field) == ("a.json", field)


def test_a_long_value_is_cut():
    with pytest.raises(CheckpointError) as caught:
        check_fields(PLACE, {"heads": "x" * 10_000}, FIELDS)
    assert len(str(caught.value)) < 200


OBJECT = {
    "module": "anywhere",
    "class_name": "A",
    "config": {"a": 1},
    "registered_name": "ours>A",
}


def test_an_object():
    assert check_object(PLACE, OBJECT, {"ours>A": "A"}) == {"a": 1}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"registered_name": "theirs>A"}, "config.registered_name"),
        ({"registered_name": ["ours>A"]}, "config.registered_name"),
        ({"class_name": "B"}, "config.class_name"),
        ({"module": 1}, "config.module"),
        ({"config": [1]}, "config.config"),
        ({"build_config": {}}, "config"),
    ],
)
def test_another_object(change, field):
    with pytest.raises(CheckpointError) as caught:
        check_object(PLACE, OBJECT | change, {"ours>A": "A"})
    assert caught.value.field == field


@pytest.mark.parametrize("name", ["", "a/b", "a\n", 7, None, "n" * 201])
def test_what_is_no_name(name):
    check_name(PLACE, "switch mini-2")
    with pytest.raises(CheckpointError, match="a name of at most"):
        check_name(PLACE, name)
