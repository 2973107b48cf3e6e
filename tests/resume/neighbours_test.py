import warnings

import keras
import numpy as np
import pytest

from keras_switch import RoutingMonitor
from keras_switch.resume import neighbours


class Speaking(keras.callbacks.Callback):
    def __init__(self, value=0):
        super().__init__()
        self.value = value

    def get_state(self):
        return {"value": self.value}

    def set_state(self, state):
        self.value = state["value"]


class Silent(keras.callbacks.Callback):
    pass


def states(callbacks):
    arrays = {}
    return neighbours.states_of(callbacks, arrays), arrays


def test_neighbours_are_those_of_the_list_that_calls():
    class Looking(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.seen = neighbours.neighbours(self)

    looking, other = Looking(), Silent()
    calls = keras.callbacks.CallbackList([other, looking], add_history=True)
    calls.on_train_begin()
    assert looking.seen[0] is other
    assert isinstance(looking.seen[1], keras.callbacks.History)
    assert len(looking.seen) == 2
    assert neighbours.neighbours(looking) == []


def test_states_go_to_callbacks_of_the_class_in_order():
    saved, arrays = states([Speaking(1), Silent(), Speaking(2)])
    assert [name for name, _ in saved] == ["Speaking", "Speaking"]
    new = [Silent(), Speaking(), Speaking(), Speaking(9)]
    neighbours.remind(new, saved, arrays)
    assert [c.value for c in new[1:]] == [1, 2, 9]


def test_early_stopping_remembers_the_best_weights():
    before = keras.callbacks.EarlyStopping(restore_best_weights=True)
    before.on_train_begin()
    before.wait, before.best = 3, 0.5
    before.best_weights = [np.ones(2), np.zeros((1, 2))]
    saved, arrays = states([before])
    after = keras.callbacks.EarlyStopping(patience=7)
    after.on_train_begin()
    neighbours.remind([after], saved, arrays)
    assert (after.wait, after.best, after.patience) == (3, 0.5, 7)
    assert [w.tolist() for w in after.best_weights] == [[1, 1], [[0, 0]]]


def test_routing_monitor_speaks_for_itself():
    before = RoutingMonitor()
    before._calls, before._totals, before._counts = 2, {"a/b": 3.0}, {"a": 4.0}
    saved, arrays = states([before])
    after = RoutingMonitor()
    neighbours.remind([after], saved, arrays)
    assert after.get_state() == before.get_state()


@pytest.mark.parametrize("append", [False, True])
def test_rows_of_a_csv_logger_are_there_once(append, tmp_path):
    path = str(tmp_path / "log.csv")

    def logger():
        logger = keras.callbacks.CSVLogger(path, append=append)
        logger.on_train_begin()
        return logger

    before = logger()
    before.on_epoch_end(0, {"loss": 1.0})
    saved, arrays = states([before])
    before.on_epoch_end(1, {"loss": 0.9})  # will be done again
    after = logger()
    neighbours.remind([after], saved, arrays)
    after.on_epoch_end(1, {"loss": 0.8})
    after.on_train_end()
    neighbours.remind([after], saved, arrays)  # too late, the file is closed
    with open(path) as file:
        lines = file.read().splitlines()
    assert lines == ["epoch,loss,val_loss", "0,1.0,NA", "1,0.8,NA"]


def test_unknown_callbacks_are_named():
    with pytest.warns(UserWarning, match="cannot save what Silent remembers"):
        neighbours.warn_of_unknown([Speaking(), Silent(), Silent()])
    known = [
        Speaking(),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.CSVLogger("unused"),
        keras.callbacks.History(),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neighbours.warn_of_unknown(known)
