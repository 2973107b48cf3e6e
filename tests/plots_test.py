import struct

import numpy as np
import pytest

from keras_switch import plots
from keras_switch.analysis import LayerRouting, RoutingReport


def make_layer(name, num_experts=4):
    share = np.eye(num_experts)
    return LayerRouting(
        name=name,
        num_tokens=10,
        load=np.full(num_experts, 1 / num_experts),
        mean_gate=np.full(num_experts, 0.5),
        max_mean_load=1.0,
        dropped_fraction=0.1,
        router_confidence=0.5,
        router_entropy=1.2,
        load_balancing_loss=1.0,
        token_entropy=0.3,
        token_ids=np.arange(num_experts),
        tokens=tuple("$ab" + "c" * i for i in range(num_experts)),
        token_count=np.ones(num_experts, "int64"),
        token_share=share,
    )


REPORT = RoutingReport((make_layer("encoder_layer_1"), make_layer("b", 40)))
HISTORY = {
    "loss": [3.0, 2.0],
    "val_loss": [3.1, 2.5],
    "encoder_layer_1/dropped_fraction": [0.2, 0.1],
    "val_encoder_layer_1/dropped_fraction": [0.0, 0.0],
}


def size_of_png(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plots.plot_history(HISTORY, path, steps=[10, 20]),
        lambda path: plots.plot_history({"loss": [1.0]}, path),
        lambda path: plots.plot_routing_history(
            HISTORY, "dropped_fraction", path, steps=[10, 20]
        ),
        lambda path: plots.plot_load(REPORT, path),
        lambda path: plots.plot_statistics(REPORT, path),
        lambda path: plots.plot_specialisation(REPORT, "b", path),
    ],
)
def test_writes_a_png(draw, tmp_path):
    path = tmp_path / "plot.png"
    assert draw(path) == str(path)
    width, height = size_of_png(path)
    assert width > 300 and height > 200


def test_routing_history_leaves_evaluation_out(tmp_path, monkeypatch):
    lines = lines_drawn(monkeypatch)
    plots.plot_routing_history(HISTORY, "dropped_fraction", tmp_path / "p.png")
    assert lines == {"encoder_layer_1": [0.2, 0.1]}


def test_load_is_drawn_busiest_first(tmp_path, monkeypatch):
    lines = lines_drawn(monkeypatch)
    layer = make_layer("a")._replace(load=np.array([0.1, 0.6, 0.1, 0.2]))
    plots.plot_load(RoutingReport((layer,)), tmp_path / "p.png")
    assert lines["a"] == [0.6, 0.2, 0.1, 0.1]


def lines_drawn(monkeypatch):
    """Fills itself with label -> y values while plots are saved."""
    lines = {}

    def save(figure, path):
        (axes,) = figure.axes
        for line in axes.get_lines():
            if line.get_marker() != "None" or len(line.get_ydata()) > 1:
                lines[line.get_label()] = list(line.get_ydata())
        lines.pop("uniform", None)

    monkeypatch.setattr(plots, "_save", save)
    return lines


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda p: plots.plot_history({}, p), "must have `loss` or `val_loss`"),
        (
            lambda p: plots.plot_routing_history({"loss": [1.0]}, "x", p),
            "entries that end in /x",
        ),
        (
            lambda p: plots.plot_specialisation(REPORT, "c", p),
            r"layer must be one of \['b', 'encoder_layer_1'\]; received 'c'",
        ),
    ],
)
def test_bad_arguments(draw, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "plot.png")
