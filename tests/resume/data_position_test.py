import itertools

import grain
import pytest

from keras_switch.resume.data_position import GrainData, source_of
from tests.resume.training import (
    Crash,
    CrashAt,
    Numbers,
    digest,
    fit,
)


def shuffled():
    """Numbers in an order that depends on a generator with a state."""
    dataset = grain.MapDataset.source(range(1000)).seed(3).shuffle()
    dataset = dataset.to_iter_dataset().filter(lambda x: x % 3 != 0)
    return dataset.map(Numbers().__getitem__)


def first(dataset, count):
    return [x.sum() for x, _ in itertools.islice(dataset, count)]


def test_steps_are_enough_for_data_with_random_access():
    source = source_of(Numbers())
    assert first(source.dataset(2, None), 3) == first(Numbers().dataset(2), 3)
    assert source.state(5) is None
    assert source.fingerprint() == "0"


def test_no_data_has_no_place():
    assert source_of(None) is None


@pytest.mark.parametrize("data", [[1], range(3), (x for x in [1])])
def test_other_data_is_refused(data):
    with pytest.raises(ValueError, match="data must be a keras_switch.data"):
        source_of(data)


def test_the_state_of_a_grain_iterator_is_that_of_the_step():
    """`fit` may have read further than it has trained."""
    wanted = first(shuffled(), 8)
    source = GrainData(shuffled())
    iterator = iter(source.dataset(0, None))
    for _ in range(5):
        next(iterator)
    places = [source.state(step) for step in range(6)]
    for step, place in enumerate(places):
        rest = GrainData(shuffled()).dataset(step, place)
        assert first(rest, 8 - step) == wanted[step:]


def test_an_iterator_that_only_looked_is_forgotten():
    source = GrainData(shuffled())
    dataset = source.dataset(0, None)
    first(dataset, 3)
    iterator = iter(dataset)
    next(iterator)
    with pytest.raises(KeyError):
        source.state(3)
    assert source.state(1) == iterator.get_state()


def test_training_on_a_grain_dataset_is_resumed(tmp_path):
    from keras_switch.resume import ResumableCheckpoint

    def checkpoint(folder):
        return ResumableCheckpoint(folder, data=shuffled(), save_every=2)

    with pytest.raises(Crash):
        fit(checkpoint(tmp_path / "ended"), CrashAt(6))
    ended, whole = (
        fit(checkpoint(tmp_path / name)) for name in ("ended", "whole")
    )
    assert digest(ended[0]) == digest(whole[0])
    assert ended[1] == whole[1]
