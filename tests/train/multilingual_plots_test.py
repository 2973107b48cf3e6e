"""What the histogram shows."""

from keras_switch_train import multilingual_plots
from keras_switch_train.multilingual_report import PAPER


def test_speed_ups_beside_the_papers():
    rows = [{"speed-up": ratio} for ratio in (1.02, 1.04, 1.26, None, 7.0)]
    (axes,) = multilingual_plots.speed_up_figure(rows, PAPER).axes
    assert sum(bar.get_height() for bar in axes.patches[:-1]) == 4
    highest = max(axes.patches[:-1], key=lambda bar: bar.get_height())
    assert highest.get_x() <= 1.02 and highest.get_height() == 2
    assert axes.get_title().startswith("4 of 5 reach")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "mean here: 2.58" in labels and "mean in the paper: 5" in labels


def test_no_language_was_reached():
    (axes,) = multilingual_plots.speed_up_figure(
        [{"speed-up": None}], PAPER
    ).axes
    assert axes.get_title().startswith("0 of 1 reach")
