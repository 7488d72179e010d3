"""The small recipes of MMSegmentation and MMPose, trained on digits as a user trains them."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ghost_plugin.utils import optional

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]), 'OMP_NUM_THREADS': '1'}
# Of processors: 4 minutes on 2 cores. One thread trains and one process loads the images.
SECONDS = 2 * 240
# Package, config, metric and the least that it has to reach; key points count within 0.05 of the
# longer side of the box.
RECIPES = (
    ('mmseg', 'segmentation/fpn-head_ghostnet-050_digits.py', 'mIoU', 80.0),
    ('mmpose', 'pose/td-hm_ghostnet-050_digits.py', 'PCK', 0.85),
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with the data where the configs expect it."""
    pytest.importorskip('sklearn')
    folder = tmp_path_factory.mktemp('digits')
    maker = [sys.executable, ROOT / 'tools/data/make_digits.py']
    subprocess.run(maker, check=True, cwd=folder, env=ENV)
    return folder


@pytest.mark.parametrize(('package', 'config', 'metric', 'least'), RECIPES)
def test_recipe_learns_digits_in_minutes(package, config, metric, least, folder):
    if not optional.usable(f'{package}.models'):
        pytest.skip(f'needs {package}')

    def command(name, *args):
        full = [sys.executable, '-m', 'ghost_plugin.cli.main', name, ROOT / 'configs' / config]
        subprocess.run([*full, *args], check=True, cwd=folder, env=ENV)

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command('train')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    last = (folder / 'work_dirs' / Path(config).stem / 'last_checkpoint').read_text()
    command('test', last, '--json', 'metrics.json')
    reached = json.loads((folder / 'metrics.json').read_text())[metric]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f'{config}: {metric} {reached}, {used:.0f} s of processors')
    assert reached >= least
    assert used <= SECONDS
