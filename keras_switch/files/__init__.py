"""Files that are whole or absent, and files from strangers."""

from keras_switch.files.atomic import atomic_folder as atomic_folder
from keras_switch.files.atomic import atomic_write as atomic_write
from keras_switch.files.atomic import sha256 as sha256
from keras_switch.files.errors import CheckpointError as CheckpointError
from keras_switch.files.inside import file_inside as file_inside
from keras_switch.files.json_file import parse_json as parse_json
from keras_switch.files.json_file import read_bytes as read_bytes
from keras_switch.files.json_file import read_json as read_json
from keras_switch.files.manifest import MANIFEST as MANIFEST
from keras_switch.files.manifest import Entry as Entry
from keras_switch.files.manifest import manifest_of as manifest_of
from keras_switch.files.manifest import read_manifest as read_manifest
