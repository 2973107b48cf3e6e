import pytest

from keras_switch.tasks import Splits, Task


def load(cache_dir=None):
    return Splits([], [], [])


def test_a_template_holds_the_input():
    task = Task("a", load, "ask {}: {input}?", ["accuracy"])
    assert task.prompt("{input} {0}") == "ask {}: {input} {0}?"
    assert task.metrics == ("accuracy",)
    assert hash(task)


@pytest.mark.parametrize("template", ["", "{inputs}", "{input} {input}"])
def test_a_template_without_one_is_refused(template):
    with pytest.raises(ValueError, match="exactly once"):
        Task("a", load, template)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metrics must be"):
        Task("a", load, metrics=("f2",))
