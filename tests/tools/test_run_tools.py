"""Swap, train, test, benchmark and set-up as a user runs them, on a few digits."""

import functools
import importlib
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
pytest.importorskip('sklearn')

import torch
from mmengine.config import Config
from mmengine.runner import checkpoint

import ghost_plugin as gp
from ghost_plugin.cli import model_loading
from ghost_plugin.integrations.openmmlab.runner_setup import build_model
from ghost_plugin.profiling import Timing

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / 'configs/classification/ghostnet-050_digits.py'
ENV = {**os.environ, 'PYTHONWARNINGS': 'ignore'}


def run(tool, *args, **options):
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=ROOT, **options)


def error_of(done):
    """The one line of an expected failure; progress lines may stand before it."""
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    assert run('make_digits.py', folder, '--train', 8, '--val', 4).returncode == 0
    return folder


def small(digits, epochs):
    data = f'{digits}/classification'
    options = {
        'train_cfg.max_epochs': epochs,
        'train_dataloader.batch_size': 256,
        'train_dataloader.dataset.data_root': data,
        'val_dataloader.dataset.data_root': data,
        'test_dataloader.dataset.data_root': data,
    }
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


@pytest.mark.parametrize(
    'source, part, channels',
    [
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'neck', [12, 20, 56, 80]),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 'neck', [12, 20, 56, 80]),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'head', 480),
    ],
)
def test_swapped_config_inherits_builds_and_fits(source, part, channels, tmp_path):
    out = tmp_path / 'mine.py'
    done = run('swap_backbone.py', source, '--width', 0.5, '-o', out)
    assert done.returncode == 0, done.stderr
    cfg = Config.fromfile(out)
    assert cfg.model.backbone.type == 'ghost_plugin.GhostNet'
    assert cfg.model[part].in_channels == channels
    assert len(out.read_text().splitlines()) < 30
    assert [p.name for p in tmp_path.iterdir()] == ['mine.py']


@pytest.mark.parametrize(
    'source, options, said',
    [
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            ['--out-indices', 2, 3],
            'wants 4 levels',
        ),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', ['--output-stride', 24], '8, 16 or 32'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', ['--width', 0], 'got 0.0'),
        ('mmdet::_base_/datasets/coco_detection.py', [], 'no model.backbone'),
        ('nowhere.py', [], 'no config at'),
        ('mmdet::nowhere.py', [], "no config 'mmdet::nowhere.py'"),
        ('README.md', [], 'cannot read config'),
        (
            'mmpretrain::resnet/resnet18_8xb32_in1k.py',
            ['--backbone', 'ghost_plugin.GostNet'],
            'did you mean',
        ),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', ['--pretrained', 'no.pth'], 'no checkpoint'),
        ('mmpretrain::resnet/resnet18_8xb32_in1k.py', ['--side', 64], 'are for --check'),
    ],
)
def test_swap_says_what_is_wrong_and_keeps_the_old_file(
    source, options, said, tmp_path, in_process, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / 'mine.py'
    out.write_text('x = 1\n')
    status, _, err = in_process('swap_backbone', source, *options, '-o', out)
    assert (status, err.count('\n')) == (2, 1), err
    assert said in err and err.startswith('error: ')
    assert out.read_text() == 'x = 1\n'


def test_missing_data_and_config_are_named(tmp_path):
    missing = ['--cfg-options', f'train_dataloader.dataset.data_root={tmp_path}/none']
    assert 'missing or empty' in error_of(run('train.py', DIGITS, '--work-dir', tmp_path, *missing))
    assert 'no config at' in error_of(run('train.py', tmp_path / 'none.py', '--work-dir', tmp_path))
    only_test = ['--cfg-options', f'test_dataloader.dataset.data_root={ROOT}']
    none = [tmp_path / 'none.pth', '--work-dir', tmp_path, *only_test]
    assert 'no checkpoint at' in error_of(run('test.py', DIGITS, *none))


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'swap_backbone.py'])
def test_an_option_without_a_value_is_told_in_one_line(tool, tmp_path):
    more = {'test.py': ['x.pth'], 'swap_backbone.py': ['-o', tmp_path / 'x.py']}.get(tool, [])
    said = error_of(run(tool, DIGITS, *more, '--cfg-options', 'a.b=1', 'epochs'))
    assert '--cfg-options' in said and 'KEY=VALUE' in said and "'epochs'" in said


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


def test_checkpoints_run_no_code(digits, tmp_path):
    bad = tmp_path / 'bad.pth'
    torch.save({'state_dict': Hostile()}, bad)
    options = ['--work-dir', tmp_path, *small(digits, 1)]
    pretrained = ['model.init_cfg.type=Pretrained', f'model.init_cfg.checkpoint={bad}']
    cases = [
        ('test.py', [bad], 'would run builtins.print'),
        ('train.py', ['--resume', bad], 'would run builtins.print'),
        ('train.py', [], 'more than tensors'),
    ]
    guarded = hasattr(checkpoint, 'get_torch_safe_globals')  # older ones are not
    for tool, given, said in cases if guarded else cases[:2]:
        done = run(tool, DIGITS, *given, *options, *([] if given else pretrained))
        assert said in error_of(done)
        assert 'owned' not in done.stdout


@pytest.mark.parametrize(
    'tool, package, said',
    [
        ('train.py', 'mmengine', "pip install 'ghost_plugin[openmmlab]'"),
        ('test.py', 'mmcv', "pip install 'ghost_plugin[openmmlab]'"),
        ('swap_backbone.py', 'mmengine', "pip install 'ghost_plugin[openmmlab]'"),
        ('make_digits.py', 'sklearn', 'pip install scikit-learn'),
        ('prepare_folder.py', 'PIL', 'pip install pillow'),
    ],
)
def test_missing_packages_are_named(tool, package, said, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text("raise OSError('broken')")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, str(ROOT / 'tools' / tool), 'a', 'b']
    env = {**ENV, 'PYTHONPATH': paths}
    line = error_of(subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT))
    assert said in line and 'OSError: broken' in line


@pytest.fixture
def interruptible():
    """Children take Ctrl-C also where a shell runs the tests in its background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(process):
    """Ctrl-C; what it says before it ends."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[1]


def test_interrupted_training_goes_on_where_it_was(interruptible, digits, tmp_path):
    command = [sys.executable, 'tools/train.py', str(DIGITS), '--work-dir', str(tmp_path)]
    process = subprocess.Popen([*command, *small(digits, 40)], cwd=ROOT, env=ENV, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 240
    while not (tmp_path / 'last_checkpoint').is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    errors = interrupt(process)
    assert process.returncode == 2, errors
    assert 'interrupted' in errors and '--resume' in errors and 'Traceback' not in errors
    first = Path((tmp_path / 'last_checkpoint').read_text())
    epochs = int(first.stem.split('_')[1]) + 1
    done = run('train.py', DIGITS, '--work-dir', tmp_path, '--resume', *small(digits, epochs))
    assert done.returncode == 0, done.stderr
    assert f'Saving checkpoint at {epochs} epochs' in done.stdout
    assert 'Saving checkpoint at 1 epochs' not in done.stdout
    metrics = tmp_path / 'made/metrics.json'
    last = Path((tmp_path / 'last_checkpoint').read_text())
    options = ['--work-dir', tmp_path / 'test', '--json', metrics, *small(digits, 1)]
    assert run('test.py', DIGITS, last, *options).returncode == 0
    assert 0 <= json.loads(metrics.read_text())['accuracy/top1'] <= 100
    report = gp.load_weights(gp.GhostNet(0.5, out_indices=(5,)), last)
    assert report.missing == ()


def test_neck_that_wants_other_maps_is_named(tmp_path):
    options = ['--cfg-options', 'model.backbone.out_indices=[2,3,4]']
    bccd = ROOT / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
    line = error_of(run('train.py', bccd, '--work-dir', tmp_path, *options))
    assert '[24, 40, 112, 160]' in line and 'gives [40, 112, 160]' in line


def test_full_disk_ends_in_one_line(digits, tmp_path):
    def no_large_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = run(
        'train.py', DIGITS, '--work-dir', tmp_path, *small(digits, 1), preexec_fn=no_large_files
    )
    assert 'error.txt' in error_of(done)
    assert not (tmp_path / 'last_checkpoint').exists()


def test_broken_picture_is_named(digits, tmp_path):
    bad = digits / 'classification/train/0/9999.png'
    bad.write_bytes(b'not a picture')
    try:
        done = run('train.py', DIGITS, '--work-dir', tmp_path, *small(digits, 1))
    finally:
        bad.unlink()
    assert '9999.png' in error_of(done)


def test_benchmark_prints_ratios_and_writes_figures(tmp_path):
    figures = tmp_path / 'figures.json'
    done = run('benchmark.py', 'ghostnet_plugin_050', 'ghostnet_050', '--batch', 2, '--side', 32,
               '--rounds', 2, '--warmup', 1, '--json', figures)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('| best of both |') == 3
    assert len(json.loads(figures.read_text())) == 12
    assert 'two models, family, forms, bf16, convert or grid' in error_of(
        run('benchmark.py', 'ghostnet_100')
    )


@pytest.mark.parametrize(
    ('args', 'said'),
    [
        (['nonsense', 'ghostnet_100'], 'timm has no nonsense'),
        (['bf16', 'extra'], 'timm has no bf16, extra'),
        (['--threads', 0], 'not a whole number above 0'),
        (['--rounds', 0], 'not a whole number above 0'),
        (['--batch', 0], 'not a whole number above 0'),
        (['--device', 'foo'], "no device 'foo' here"),
        (['--json', __file__ + '/x.json'], 'is no folder'),
        (['grid', 'timm:resnet18', '--picture', 'x.abc'], '--picture must end in one of'),
        (['grid', 'timm:resnet18', '--top1', 'no.json', '--picture', 'x.png'], 'no.json'),
    ],
)
def test_benchmark_refuses_before_it_measures(args, said, monkeypatch, in_process):
    for module, name in (('_compare', 'measure'), ('_grid', 'grid')):
        tool = importlib.import_module(module)
        monkeypatch.setattr(tool, name, lambda *args: pytest.fail('it measures'))
    status, _, err = in_process('benchmark', *args)
    assert (status, err.count('\n')) == (2, 1)
    assert said in err


@pytest.mark.parametrize('met', [True, False])
def test_the_digits_are_learned_converted_and_shown(met, digits, tmp_path, in_process, monkeypatch):
    small = functools.partial(
        model_loading.load, 'timm:test_resnet'
    )  # fitting ResNet-18 takes long
    monkeypatch.setattr(model_loading, 'load', lambda name, **options: small(**options))
    plan = gp.plan

    def pretended(*args, latency=None, ready=None, **options):
        if latency is None:
            return plan(*args, **options)
        assert latency == 0.7 and callable(ready)
        if not met:
            raise ValueError('the fastest plan measured takes 0.900')
        made = plan(*args, macs=0.75, **options)
        made.latency = {'original': 4.0, 'converted': 2.8}
        return made

    monkeypatch.setattr(gp, 'plan', pretended)  # what a machine reaches differs
    args = [digits / 'classification', tmp_path, '--epochs', 0.3]
    status, out, err = in_process('convert_digits', *args)
    assert status == 0, err
    rows = json.loads((tmp_path / 'result.json').read_text())
    assert [row['model'] for row in rows] == ['original', 'converted', 'fine-tuned']
    assert rows[1]['macs'] == rows[2]['macs'] < rows[0]['macs']
    assert rows[0]['latency_ratio'] == 1
    for row in rows:
        expected = row['latency_ms'] / rows[0]['latency_ms']
        assert row['latency_ratio'] == pytest.approx(expected)
    assert out == (tmp_path / 'table.md').read_text()
    assert out.count('| fine-tuned |') == 1 and 'batch 16, 32 x 32 px' in out
    if met:
        assert 'budget: latency=0.7, planning measured 0.70\n' in out
    else:
        assert 'macs=0.5, because no plan met the time: the fastest plan measured takes 0.9' in out
        assert rows[1]['macs'] <= 0.5 * rows[0]['macs']
    assert (tmp_path / 'plan.png').read_bytes().startswith(b'\x89PNG')


def test_the_digits_are_timed_in_the_fastest_runtime_that_works(monkeypatch):
    tool = importlib.import_module('convert_digits')

    def ready(runtime):
        def made(model, batch):
            if runtime == 'openvino':
                raise ImportError('openvino is not installed')
            return runtime

        return made

    def time_together(calls, **options):
        milliseconds = {'onnxruntime': 3.0, 'channels-last': 2.0}
        return [Timing(name, milliseconds[name], 0, 0, 1) for name in calls]

    monkeypatch.setattr(gp.deploy, 'ready', ready)
    monkeypatch.setattr(tool, 'time_together', time_together)
    assert tool.fastest(torch.nn.Identity(), torch.zeros(1, 3, 8, 8)) == 'channels-last'


def test_models_of_two_frameworks_are_built_in_turn_without_a_warning(capfd):
    detector = ROOT / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
    for config in (detector, DIGITS, detector, DIGITS):
        build_model(config)
    out, err = capfd.readouterr()
    assert 'WARNING' not in out + err


def test_setup_checks_the_current_environment_without_changing_it():
    env = {**ENV, 'GHOST_VENV': 'current', 'PYTHON': sys.executable}
    script = ['bash', str(ROOT / 'tools/setup_env.sh')]
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    env['PYTHON'] = '/nowhere/python'
    done = subprocess.run(script, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and done.stderr.startswith('error: ')
