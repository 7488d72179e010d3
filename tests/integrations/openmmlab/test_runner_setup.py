"""Configs of runs: what they must have, which data they read, where they write."""

from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')
pytest.importorskip('mmcv')

from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.utils import is_installed

from ghost_plugin.integrations.openmmlab import runner_setup
from ghost_plugin.integrations.openmmlab.backbone_swap import resolve

WHOLE = """
model = dict(backbone=dict(type='ghost_plugin.GhostNet', width=0.5, out_indices=(2, 3, 4)),
             neck=dict(type='Neck', in_channels={channels}))
train_dataloader = dict(dataset=dict(data_root='{train}'))
optim_wrapper = dict(optimizer=dict(lr=1.0))
"""
MORE = """
val_dataloader = dict(dataset=dict(data_root='{val}'))
test_dataloader = dict(dataset=dict(data_root='{test}'))
"""


@pytest.fixture
def written(tmp_path):
    """Write a config; data that is not named otherwise is there."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/0.png').touch()

    def write(text=WHOLE + MORE, channels=(20, 56, 80), **roots):
        there = dict.fromkeys(('train', 'val', 'test'), tmp_path / 'data')
        path = tmp_path / 'mine.py'
        path.write_text(text.format(channels=list(channels), **{**there, **roots}))
        return path

    return write


@pytest.mark.parametrize('channels', [(20, 56, 80), (80, 56, 20)])
def test_a_neck_may_begin_with_the_deepest_map(written, channels):
    runner_setup.load_run(written(channels=channels), 'work')


def test_a_neck_of_other_channels_is_named(written):
    with pytest.raises(ValueError, match=r'Neck wants \[20, 80, 56\] channels .* \[20, 56, 80\]'):
        runner_setup.load_run(written(channels=(20, 80, 56)), 'work')


def test_pretraining_has_no_test(written):
    runner_setup.load_run(written(WHOLE), 'work')
    with pytest.raises(ValueError, match='has no test_dataloader'):
        runner_setup.load_run(written(WHOLE), 'work', mode='test')


@pytest.mark.parametrize('mode, reads', [('train', {'train', 'val'}), ('test', {'test'})])
@pytest.mark.parametrize('missing', ['train', 'val', 'test'])
def test_only_data_that_is_read_must_be_there(written, mode, reads, missing):
    path = written(**{missing: 'nowhere'})
    if missing not in reads:
        runner_setup.load_run(path, 'work', mode=mode)
        return
    with pytest.raises(FileNotFoundError, match=f"{missing}_dataloader reads data from 'nowh"):
        runner_setup.load_run(path, 'work', mode=mode)


@pytest.mark.parametrize(
    'line, options, where',
    [
        ('', {}, 'work'),
        ('work_dir = None', {}, 'work'),
        ("work_dir = 'mine'", {}, 'mine'),
        ("work_dir = 'mine'", {'work_dir': 'given'}, 'given'),
    ],
)
def test_the_command_line_goes_before_the_configs_work_dir(written, line, options, where):
    assert runner_setup.load_run(written(WHOLE + line), 'work', options).work_dir == where


LAZY = """
from mmengine.hooks import {kind}
default_hooks = dict(checkpoint=dict(type={kind}, interval=3))
"""
TEXT = 'default_hooks = dict(checkpoint=dict(type={kind!r}, interval=3))'


@pytest.mark.parametrize(
    'text, kind, whole',
    [
        (LAZY, 'CheckpointHook', True),
        (TEXT, 'CheckpointHook', True),
        (TEXT, 'mmengine.CheckpointHook', True),
        (TEXT, 'mmengine.hooks.CheckpointHook', True),
        (LAZY, 'LoggerHook', False),
        (TEXT, 'LoggerHook', False),
    ],
)
def test_every_way_to_name_mmengines_checkpoint_hook_writes_whole_files(
    text, kind, whole, tmp_path
):
    path = tmp_path / 'mine.py'
    path.write_text(text.format(kind=kind))
    cfg = Config.fromfile(path)
    runner_setup.use_atomic_checkpoints(cfg)
    hook = cfg.default_hooks.checkpoint
    assert hook.interval == 3
    assert (
        hook.type == 'ghost_plugin.AtomicCheckpointHook'
        if whole
        else (hook.type in ('LoggerHook', LoggerHook))
    )


def test_a_hook_that_nobody_knows_is_left_to_the_runner():
    cfg = Config({'default_hooks': {'checkpoint': {'type': 'nobody.Knows'}}})
    runner_setup.use_atomic_checkpoints(cfg)
    assert cfg.default_hooks.checkpoint.type == 'nobody.Knows'


def test_a_missing_module_of_custom_imports_is_named(written):
    text = "custom_imports = dict(imports=['no_such_module'])\nmodel = dict()"
    with pytest.raises(ValueError, match=r"No module named 'no_such_module'.*PYTHONPATH") as caught:
        runner_setup.read_config(written(text.replace('{', '{{').replace('}', '}}')))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'content', [{'conv.weight': torch.ones(2)}, {'state_dict': {}, 'meta': {'classes': ['a']}}]
)
def test_only_a_checkpoint_of_a_run_is_resumed(content, tmp_path):
    path = str(tmp_path / 'w.pth')
    torch.save(content, path)
    runner_setup.check_checkpoint(path)
    with pytest.raises(ValueError, match=r'no state of a run .*load_from='):
        runner_setup.check_checkpoint(path, resume=True)
    torch.save({**content, 'meta': {'epoch': 1, 'iter': 9}}, path)
    runner_setup.check_checkpoint(path, resume=True)
    runner_setup.check_checkpoint(str(tmp_path), resume=True)  # a file per process


def test_rates_scale_only_where_the_config_says_from_which_batch_size():
    cfg = Config({'auto_scale_lr': {'base_batch_size': 16}})
    runner_setup.scale_learning_rate(cfg)
    assert cfg.auto_scale_lr.enable
    for without in ({}, {'auto_scale_lr': {'enable': False}}):
        with pytest.raises(ValueError, match='base_batch_size=N'):
            runner_setup.scale_learning_rate(Config(without))


def test_a_label_beyond_the_classes_is_explained():
    with pytest.raises(IndexError) as caught:
        torch.nn.functional.cross_entropy(torch.zeros(1, 3), torch.tensor([7]))
    assert 'label 7 and the model fewer classes' in str(runner_setup.explain_error(caught.value))
    other = IndexError('list index out of range')
    assert runner_setup.explain_error(other) is other


@pytest.mark.parametrize('launcher, command', [('pytorch', 'torchrun'), ('slurm', 'srun')])
def test_a_launcher_that_did_not_start_the_process_is_told(launcher, command, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    with pytest.raises(ValueError, match=f'--launcher {launcher} .* start with {command}'):
        runner_setup.launch(Config(), launcher)


def test_a_lost_pointer_and_half_a_file_are_passed_over(tmp_path):
    with pytest.raises(FileNotFoundError, match='train first'):
        runner_setup.last_checkpoint(tmp_path)
    for epoch in (9, 10):
        torch.save({'epoch': epoch}, tmp_path / f'epoch_{epoch}.pth')
    (tmp_path / 'epoch_11.pth').write_bytes((tmp_path / 'epoch_10.pth').read_bytes()[:100])
    torch.save({}, tmp_path / 'best_accuracy_top1_epoch_12.pth')
    for pointer in (None, '', str(tmp_path / 'epoch_11.pth'), str(tmp_path / 'epoch_8.pth')):
        if pointer is not None:
            (tmp_path / 'last_checkpoint').write_text(pointer)
        assert runner_setup.last_checkpoint(tmp_path).name == 'epoch_10.pth'


def test_models_of_two_frameworks_are_built_in_turn_without_a_warning(capfd):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmpretrain')
    root = Path(__file__).parents[3]
    detector = root / 'configs/detection/retinanet_ghostnet-100_fpn_bccd.py'
    digits = root / 'configs/classification/ghostnet-050_digits.py'
    for config in 2 * (detector, digits):
        runner_setup.build_model(config)
    out, err = capfd.readouterr()
    assert 'WARNING' not in out + err


def test_packages_of_forks_are_found_by_the_name_of_their_module():
    pytest.importorskip('mmseg')
    assert runner_setup.read_config(
        resolve('mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    )
    for module in runner_setup.FORKS:
        assert is_installed(module) and runner_setup.MODULE2PACKAGE[module] == module
