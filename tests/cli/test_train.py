"""The commands train and test, on a few images in class folders."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

import torch
from mmengine.runner import checkpoint

import ghost_plugin as gp
from ghost_plugin.utils import optional

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/classification/ghostnet-050_digits.py'
ENV = {**os.environ, 'PYTHONWARNINGS': 'ignore'}


def run(name, *args, **options):
    command = [sys.executable, str(ROOT / 'tools' / name), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=ROOT, **options)


def error_of(done):
    """The one line of an expected failure; progress lines may stand before it."""
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, done.stderr
    return lines[0]


def small(images, epochs):
    options = {
        'train_cfg.max_epochs': epochs,
        'train_dataloader.batch_size': 18,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }
    for loader in ('train', 'val', 'test'):
        options[f'{loader}_dataloader.dataset.data_root'] = images
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def test_missing_data_and_config_are_named(cli, environ, tmp_path):
    def said(*args):
        status, _, err = cli(*args)
        assert status == 2 and err.count('\n') == 1, err
        return err

    work = ['--work-dir', tmp_path]
    missing = ['--cfg-options', f'train_dataloader.dataset.data_root={tmp_path}/none']
    assert 'missing or empty' in said('train', CONFIG, *work, *missing)
    assert 'no config at' in said('train', tmp_path / 'none.py', *work)
    data = ['--cfg-options', f'test_dataloader.dataset.data_root={ROOT}']
    assert 'no checkpoint at' in said('test', CONFIG, tmp_path / 'none.pth', *work, *data)


def test_a_neck_that_does_not_fit_is_named(cli, environ, tmp_path):
    config = ROOT / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
    options = ['--cfg-options', 'model.backbone.out_indices=[2,3,4]']
    status, _, err = cli('train', config, '--work-dir', tmp_path, *options)
    assert status == 2 and '[24, 40, 112, 160]' in err and 'gives [40, 112, 160]' in err


@pytest.mark.parametrize('command', [['train'], ['test', 'x.pth'], ['swap', '-o', 'x.py']])
def test_an_option_without_a_value_is_named(refused, command):
    name, *more = command
    said = refused(name, CONFIG, *more, '--cfg-options', 'a.b=1', 'epochs')
    assert '--cfg-options' in said and 'KEY=VALUE' in said and "'epochs'" in said


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


@pytest.mark.parametrize('command', ['train', 'test'])
def test_checkpoints_run_no_code(cli, environ, pictures, command, tmp_path):
    bad = tmp_path / 'bad.pth'
    torch.save({'state_dict': Hostile()}, bad)
    given = ['--resume', bad] if command == 'train' else [bad]
    options = ['--work-dir', tmp_path, *small(pictures, 1)]
    status, out, err = cli(command, CONFIG, *given, *options)
    assert status == 2 and 'would run builtins.print' in err and 'owned' not in out


@pytest.mark.skipif(not hasattr(checkpoint, 'get_torch_safe_globals'), reason='not guarded')
def test_weights_of_a_config_run_no_code(cli, environ, pictures, tmp_path):
    bad = tmp_path / 'bad.pth'
    torch.save({'state_dict': Hostile()}, bad)
    pretrained = ['model.init_cfg.type=Pretrained', f'model.init_cfg.checkpoint={bad}']
    options = ['--work-dir', tmp_path, *small(pictures, 1), *pretrained]
    status, out, err = cli('train', CONFIG, *options)
    assert status == 2 and 'more than tensors' in err and 'owned' not in out


def test_a_broken_package_is_named(tmp_path):
    package = 'mmengine'
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text("raise OSError('broken')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, str(ROOT / 'tools/train.py'), 'a']
    env = {**ENV, 'PYTHONPATH': paths}
    line = error_of(subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT))
    assert "pip install 'ghost_plugin[openmmlab]'" in line and 'OSError: broken' in line


@pytest.fixture
def interruptible():
    """Children receive Ctrl-C even if a shell runs the tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_run_is_trained_and_tested(cli, environ, pictures, tmp_path):
    status, _, err = cli('train', CONFIG, '--work-dir', tmp_path / 'run', *small(pictures, 1))
    assert status == 0, err
    last = Path((tmp_path / 'run/last_checkpoint').read_text())
    assert gp.load_weights(gp.GhostNet(0.5, out_indices=(5,)), last).missing == ()
    metrics = tmp_path / 'made/metrics.json'
    options = ['--work-dir', tmp_path / 'test', '--json', metrics, *small(pictures, 1)]
    status, _, err = cli('test', CONFIG, last, *options)
    assert status == 0, err
    assert 0 <= json.loads(metrics.read_text())['accuracy/top1'] <= 100


@pytest.mark.parametrize(
    'package, config, metric',
    [
        ('mmseg', 'segmentation/fpn-head_ghostnet-050_digits.py', 'mIoU'),
        ('mmpose', 'pose/td-hm_ghostnet-050_digits.py', 'PCK'),
    ],
)
def test_a_sibling_is_trained_and_tested(
    cli, environ, package, config, metric, tmp_path, monkeypatch
):
    if not optional.usable(f'{package}.models', 'sklearn'):
        pytest.skip(f'needs {package} and scikit-learn')
    monkeypatch.chdir(tmp_path)
    maker = [sys.executable, ROOT / 'tools/data/make_digits.py', '--train', '4', '--val', '2']
    subprocess.run(maker, check=True, env={**ENV, 'PYTHONPATH': str(ROOT)})
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=2']
    for loader in ('train', 'val', 'test'):
        options += [f'{loader}_dataloader.num_workers=0']
        options += [f'{loader}_dataloader.persistent_workers=False']
    status, _, err = cli('train', ROOT / 'configs' / config, '--work-dir', 'run', *options)
    assert status == 0, err
    given = ['run/epoch_1.pth', '--json', 'metrics.json', '--work-dir', 'test', *options]
    status, _, err = cli('test', ROOT / 'configs' / config, *given)
    assert status == 0, err
    assert 0 <= json.loads(Path('metrics.json').read_text())[metric] <= 100


@pytest.mark.slow
def test_interrupted_training_continues(interruptible, pictures, tmp_path):
    command = [sys.executable, 'tools/train.py', str(CONFIG), '--work-dir', str(tmp_path)]
    process = subprocess.Popen([*command, *small(pictures, 200)], cwd=ROOT, env=ENV, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 240
    while not (tmp_path / 'last_checkpoint').is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        errors = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        errors = process.communicate()[1]
    assert process.returncode == 2, errors
    assert 'interrupted' in errors and '--resume' in errors and 'Traceback' not in errors
    first = Path((tmp_path / 'last_checkpoint').read_text())
    epochs = int(first.stem.split('_')[1]) + 1
    done = run('train.py', CONFIG, '--work-dir', tmp_path, '--resume', *small(pictures, epochs))
    assert done.returncode == 0, done.stderr
    assert f'Saving checkpoint at {epochs} epochs' in done.stdout
    assert 'Saving checkpoint at 1 epochs' not in done.stdout


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line(pictures, tmp_path):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    options = ['--work-dir', tmp_path, *small(pictures, 1)]
    done = run('train.py', CONFIG, *options, preexec_fn=no_large_files)
    assert 'error.txt' in error_of(done)
    assert not (tmp_path / 'last_checkpoint').exists()


def test_a_broken_image_is_named(cli, environ, pictures, tmp_path):
    (pictures / 'train/red/9999.png').write_bytes(b'not an image')
    status, _, err = cli('train', CONFIG, '--work-dir', tmp_path, *small(pictures, 1))
    assert status == 2 and '9999.png' in err.splitlines()[-1]
