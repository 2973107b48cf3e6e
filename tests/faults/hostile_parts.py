"""Presets whose tokenizer, preprocessor or task says what it must not."""

from tests.faults.hostile_files import Fault, change
from tests.faults.hostile_json import field, shown


def faults() -> list[Fault]:
    """Faults of JSON beside the backbone's."""
    return [*_of_tokenizers(), *_of_tasks()]


def _of_tokenizers():
    part = "tokenizer.json"
    for name, value in (
        ("proto", "/etc/passwd"),
        ("proto", "A" * 4000),
        ("config_file", "../../secret"),
        ("extra_ids", -1),
        ("extra_ids", 10**9),
        ("extra_ids", True),
        ("sequence_length", 0),
        ("sequence_length", "8"),
        ("special_tokens_in_strings", 1),
        ("add_bos", "no"),
        ("dtype", "float32"),
        ("surprise", 1),
    ):
        yield Fault(
            f"the tokenizer's {name} is {shown(value)}",
            field(name, value, part),
            f"config.{name}",
            "tokenizer",
        )

    def lambda_of(content):
        content["registered_name"] = "hostile>Decoy"

    for load in ("tokenizer", "preprocessor"):
        yield Fault(
            f"a tokenizer of another class, for the {load}",
            change(part, lambda_of),
            part if load == "tokenizer" else "preprocessor.json",
            load,
        )


def _of_tasks():
    for part, name, value in (
        ("preprocessor.json", "encoder_sequence_length", 0),
        ("preprocessor.json", "encoder_sequence_length", 2**40),
        ("preprocessor.json", "decoder_sequence_length", None),
        ("preprocessor.json", "image_converter", {"class_name": "Decoy"}),
        ("preprocessor.json", "tokenizer", {"class_name": "Decoy"}),
        ("preprocessor.json", "config_file", "/etc/passwd"),
    ):
        yield Fault(
            f"the preprocessor's {name} is {shown(value)}",
            field(name, value, part),
            name,
            "preprocessor",
        )
    for name, value in (
        ("backbone", {"class_name": "Decoy", "config": {}}),
        ("preprocessor", {"class_name": "Decoy", "config": {}}),
        ("compile_config", {"optimizer": "adam"}),
        ("name", None),
        ("name", ["a"]),
    ):
        yield Fault(
            f"the task's {name} is {shown(value)}",
            field(name, value, "task.json"),
            name,
        )

    def other(content):
        content["registered_name"] = "hostile>Decoy"

    yield Fault("a task of another class", change("task.json", other), "task")

    def small(content):
        content["config"]["backbone"]["config"]["num_heads"] = 4

    yield Fault(
        "a task of another backbone", change("task.json", small), "backbone"
    )
