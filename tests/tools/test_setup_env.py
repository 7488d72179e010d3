"""The set-up of an environment that is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, 'PYTHONWARNINGS': 'ignore'}


def test_setup_checks_the_current_environment_without_changing_it():
    env = {**ENV, 'GHOST_VENV': 'current', 'PYTHON': sys.executable}
    script = ['bash', str(ROOT / 'tools/setup_env.sh')]
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    env['PYTHON'] = '/nowhere/python'
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.startswith('error: ')
