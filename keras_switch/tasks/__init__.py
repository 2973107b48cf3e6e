"""Tasks to fine-tune on: examples, templates, metrics, scores."""

from keras_switch.data.mixture import mixing_rates as mixing_rates
from keras_switch.tasks.batches import TaskBatches as TaskBatches
from keras_switch.tasks.batches import TaskHeldOut as TaskHeldOut
from keras_switch.tasks.encoding import Encoded as Encoded
from keras_switch.tasks.encoding import Shape as Shape
from keras_switch.tasks.encoding import encode as encode
from keras_switch.tasks.evaluation import predict as predict
from keras_switch.tasks.evaluation import report as report
from keras_switch.tasks.evaluation import sample as sample
from keras_switch.tasks.evaluation import score as score
from keras_switch.tasks.few_shot import few_shot as few_shot
from keras_switch.tasks.from_file import from_file as from_file
from keras_switch.tasks.metrics import METRICS as METRICS
from keras_switch.tasks.metrics import compute as compute
from keras_switch.tasks.splits import Example as Example
from keras_switch.tasks.splits import Row as Row
from keras_switch.tasks.splits import Splits as Splits
from keras_switch.tasks.splits import split_as_given as split_as_given
from keras_switch.tasks.splits import split_rows as split_rows
from keras_switch.tasks.table import describe as describe
from keras_switch.tasks.table import find as find
from keras_switch.tasks.table import load as load
from keras_switch.tasks.table import names as names
from keras_switch.tasks.table import register as register
from keras_switch.tasks.task import Task as Task
