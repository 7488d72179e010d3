"""The file of results: every study has a table on the page, and nothing of one machine in it."""

import json

import pytest

pytest.importorskip('timm')

import _results
import results

STUDIES = _results.load()


@pytest.mark.parametrize('name', [name for name in STUDIES if name != 'earlier'])
def test_study_says_how_it_was_made(name):
    study = STUDIES[name]
    assert study['rows']
    assert study['command'].startswith(('python tools/', 'bash tools/'))
    assert set(study) >= {'date', 'commit', 'machine', 'threads', 'versions', 'load'}
    assert 'with changes' not in study['commit']
    assert results.study_table(name).count('\n') > len(study['rows'])
    assert '/work/' not in json.dumps(study) and '/home/' not in json.dumps(study)


def test_values_and_their_units():
    row = {'macs': 1.5e6, 'name': 'a'}
    assert results.value('macs', '.2f', 1e6)(row) == '1.50'
    assert results.value('name')(row) == 'a'
    assert results.value('top1', '.1f')(row) == ''


def test_record_keeps_what_can_be_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(_results, 'FILE', tmp_path / 'results.json')
    monkeypatch.setattr(_results, '_commit', lambda: 'abc')
    row = {
        'model': 'a',
        'top1': 1.5,
        'metrics': {'x': 1},
        'checkpoint': '/home/a.pth',
        'none': None,
    }
    _results.record('b', [row], 'python tools/b.py', note='Note.')
    _results.record('a', [row], 'python tools/a.py')
    found = _results.load()
    assert list(found) == ['a', 'b']
    assert found['b']['rows'] == [{'model': 'a', 'top1': 1.5}]
    assert found['b']['commit'] == 'abc' and found['b']['note'] == 'Note.'
    assert found['b']['versions']['torch']
