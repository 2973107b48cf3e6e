"""What the plots of the study show."""

import numpy as np

from keras_switch_train import study_plots
from keras_switch_train.study_report import Run


def run(name, seed):
    losses = np.array([5.0, 4.0, 3.0])
    steps = np.array([1.0, 2.0, 3.0])
    curve = {"step": steps, "seconds": 2 * steps, "val_loss": losses}
    return Run(name, seed, curve, {})


def test_loss_by_steps_and_by_seconds():
    figure = study_plots.loss_figure([run("dense", 0), run("switch", 1)])
    by_step, by_time = figure.axes
    assert [line.get_label() for line in by_step.lines] == [
        "dense, seed 0",
        "switch, seed 1",
    ]
    assert by_time.lines[0].get_xdata()[-1] == 6
    assert by_time.get_xlabel() == "seconds of training, one core"


def test_routers_by_what_they_gain():
    other = run("switch", 1)
    mine = run("router_hash", 1)
    mine.curve["step"] = np.array([2.0, 3.0, 4.0])
    (axes,) = study_plots.routers_figure([(mine, other)]).axes
    line = axes.lines[0]
    assert line.get_label() == "hash, seed 1"
    assert list(line.get_xdata()) == [2, 3]  # where both were evaluated
    assert list(line.get_ydata()) == [1, 1]
    assert "switch" in axes.get_ylabel()


def test_ratio_without_the_points_that_were_never_reached():
    rows = [
        {"seed": 0, "dense step": 1, "steps ratio": 2.0, "time ratio": 1.5},
        {"seed": 0, "dense step": 2, "steps ratio": None, "time ratio": None},
    ]
    (axes,) = study_plots.ratio_figure(rows).axes
    steps = axes.lines[0].get_ydata()
    assert steps[0] == 2.0 and np.isnan(steps[1])


def test_specialisation_puts_experts_of_a_domain_side_by_side():
    load = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    figure = study_plots.specialisation_figure({"layer": load}, ["a", "b"])
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[3, 0, 0], [0, 1.5, 1.5]])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "b"]
