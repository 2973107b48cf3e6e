"""What people read when a file is not what it must be."""

from keras_switch.files import CheckpointError


def test_it_names_file_field_wanted_and_received():
    error = CheckpointError("a.json", "d_ff", "an integer", "True", "Mend it.")
    assert str(error) == (
        "a.json: d_ff must be an integer; received True. Mend it."
    )
    assert (error.file, error.field) == ("a.json", "d_ff")
    assert (error.expected, error.received) == ("an integer", "True")
    assert isinstance(error, ValueError)
