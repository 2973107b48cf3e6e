"""What is said of files that are not what they must be."""

from typing import Any


class CheckpointError(ValueError):
    """A checkpoint is not what it must be.

    Args:
        file: File or folder it was found in.
        field: Tensor or field of the file.
        expected: What was wanted.
        received: What came.
        advice: What to do about it.
    """

    def __init__(
        self,
        file: Any,
        field: str,
        expected: Any,
        received: Any,
        advice: str = "",
    ) -> None:
        self.file, self.field = str(file), field
        self.expected, self.received = expected, received
        message = f"{file}: {field} must be {expected}; received {received}."
        super().__init__(f"{message} {advice}".strip())
