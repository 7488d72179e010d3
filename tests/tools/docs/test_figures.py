"""Figures of results show the recorded values."""

import pytest

pytest.importorskip('timm')
pytest.importorskip('matplotlib')

import figures
from matplotlib.figure import Figure


@pytest.mark.parametrize('name', figures.FIGURES)
def test_figure_is_current(name):
    assert figures.is_current(name), f'run python tools/docs/figures.py {name}'


def test_bars_show_the_values():
    rows = [
        ['net', 'original', 'openvino', 1.0],
        ['net', 'ratio 2', 'openvino', 1.5],
        ['net', 'macs', 'openvino', 0.8],
        ['net', 'latency in openvino', 'openvino', 1.6],
    ]
    figure = Figure()
    figures.draw_latency(figure, rows)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1.5, 0.8, 1.6]


def test_checksum_follows_the_values():
    assert figures.checksum([1.0]) == figures.checksum([1.0]) != figures.checksum([2.0])


def test_accuracy_has_a_point_for_each_network():
    figure = Figure()
    points = [('GhostNet', 'GhostNet 1.0x', 141.0, 73.9), ('others', 'MobileNetV2', 300.0, 72.9)]
    figures.draw_accuracy(figure, (points, {'net': [(1.0, 0.0), (0.8, 2.0)]}))
    left, right = figure.axes
    assert [list(line.get_ydata()) for line in left.lines] == [[73.9], [72.9]]
    assert [list(line.get_xdata()) for line in right.lines] == [[100.0, 80.0]]


def test_networks_have_a_panel_for_each_runtime():
    rows = [
        {'model': 'a', 'kind': 'ours', 'top1': 70.0, 'ncnn': 2.0, 'PyTorch': 5.0},
        {'model': 'b', 'kind': 'others', 'top1': 75.0, 'ncnn': 1.0},
    ]
    figure = Figure()
    figures.draw_networks(figure, rows)
    pytorch, ncnn = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ['PyTorch', 'ncnn']
    assert list(ncnn.lines[0].get_xdata()) == [1.0]  # the front
    assert [text.get_text() for text in ncnn.texts] == ['a', 'b']
    assert [text.get_text() for text in pytorch.texts] == ['a']
