"""The study of accuracy and latency: files that are kept, runtimes in alternation."""

import pytest

pytest.importorskip('timm')
pytest.importorskip('onnxruntime')

import torch

import ghost_plugin as gp


@pytest.fixture
def study(monkeypatch):
    import accuracy_latency

    monkeypatch.setattr(accuracy_latency, 'SIZE', 64)
    return accuracy_latency


@pytest.fixture
def networks(study):
    kept = study.Network('kept', 'test_resnet', 70.0)
    return [kept, study.Network('converted', 'test_resnet', 69.0, 'converted', share=0.8)]


def test_files_are_written_once_and_all_are_timed(study, networks, tmp_path, monkeypatch):
    runtimes = [row for row in study.RUNTIMES if row.name in ('PyTorch', 'ONNX Runtime')]
    for network in networks:
        study.write_files(network, runtimes, tmp_path)
    names = {'test_resnet.onnx', 'test_resnet-0.8.onnx'}
    assert {path.name for path in tmp_path.iterdir()} == names
    monkeypatch.setattr(gp, 'export', None)
    for network in networks:
        study.write_files(network, runtimes, tmp_path)
    rows = study.measure(networks, runtimes, tmp_path, torch.get_num_threads(), 1)
    assert [(row['model'], row['kind']) for row in rows] == [
        ('kept', 'others'), ('converted', 'converted'),
    ]  # fmt: skip
    assert rows[1]['macs'] <= 0.8 * rows[0]['macs']
    assert all(row[runtime.name] > 0 for row in rows for runtime in runtimes)


def test_a_runtime_that_fails_is_left_out(study, networks, tmp_path, monkeypatch, capsys):
    runtimes = [row for row in study.RUNTIMES if row.name in ('PyTorch', 'ONNX Runtime')]

    def fail(*args, **options):
        raise ValueError('no such operator')

    monkeypatch.setattr(gp, 'export', fail)
    study.write_files(networks[0], runtimes, tmp_path)
    assert 'kept, ONNX Runtime: no such operator' in capsys.readouterr().out
    (row,) = study.measure(networks[:1], runtimes, tmp_path, 1, 1)
    assert 'ONNX Runtime' not in row and row['PyTorch'] > 0


def test_each_network_is_named_once(study):
    titles = [row.title for row in study.NETWORKS]
    assert len(set(titles)) == len(titles)
    lite0, most, less = (row.top1 for row in study.NETWORKS if 'Lite0' in row.title)
    assert less < most <= lite0 + 1
