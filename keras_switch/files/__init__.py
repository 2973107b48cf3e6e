"""Files that are whole or absent, and files from strangers."""

from keras_switch.files.atomic import atomic_folder as atomic_folder
from keras_switch.files.atomic import atomic_write as atomic_write
from keras_switch.files.atomic import sha256 as sha256
from keras_switch.files.errors import CheckpointError as CheckpointError
from keras_switch.files.json_file import read_json as read_json
