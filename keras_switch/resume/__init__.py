"""Training that goes on exactly where it was killed."""

from keras_switch.resume.checkpoint import (
    ResumableCheckpoint as ResumableCheckpoint,
)
from keras_switch.resume.signals import EXIT_CODE as EXIT_CODE
