"""The commands plan, convert, report, evaluate and finetune, and their errors."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip('PIL')


import ghost_plugin as gp
from ghost_plugin.cli import convert as command
from ghost_plugin.cli import model_loading

NETS = """
from torch import nn

def net(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

def other():
    return nn.Conv2d(3, 8, 3)

def transposed():
    return nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2))
"""


@pytest.fixture
def model(tmp_path):
    """What the command line calls the model."""
    (tmp_path / 'nets.py').write_text(NETS)
    return [f'{tmp_path}/nets.py:net', '--size', 32]


@pytest.fixture
def made(ok, model, tmp_path):
    """A plan and the converted weights."""
    plan, weights = tmp_path / 'plan.json', tmp_path / 'converted.pth'
    ok('plan', *model, '--no-keep-last', '-o', plan)
    ok('convert', model[0], plan, *model[1:], '-o', weights)
    return plan, weights


def training(pictures, out, *more):
    return ['--data', pictures, '--val', pictures, '--batch', 12, '-o', out, *more]


def test_a_plan_that_converts_nothing_is_shown_but_not_applied(ok, refused, model, tmp_path):
    name, plan, out = f'{tmp_path}/nets.py:transposed', tmp_path / 'plan.json', tmp_path / 'c.pth'
    assert 'keep (transposed)' in ok('plan', name, *model[1:], '-o', plan)
    assert '2 x transposed' in refused('convert', name, plan, *model[1:], '-o', out)
    assert not out.exists()


def test_plan_shows_and_saves(ok, model, tmp_path):
    mixed = ok('plan', *model, '--json', '-o', tmp_path / 'mixed.json', '--group-size', 'all')
    assert {row['group_size'] for row in json.loads(mixed)['rows']} == {'all'}
    out = ok('plan', *model, '-o', tmp_path / 'deep/plan.json', '--ratio', 4, '--dw-size', 1)
    assert '| 3 | 8 to 16, 3x3 | convert | 4, dw_size 1 |' in out and 'keep (first)' in out
    plan = gp.ConversionPlan.load(tmp_path / 'deep/plan.json')
    assert [row.decision for row in plan.layers] == ['keep', 'convert', 'keep']
    assert plan.layers[1].dw_size == 1
    found = json.loads(ok('plan', *model, '-o', tmp_path / 'p.json', '--json', '--include', '6'))
    assert [row['decision'] for row in found['rows']] == ['keep', 'keep', 'convert']
    assert found['totals']['macs_after'] < found['totals']['macs_before']


def test_options_reach_the_plan(ok, model, tmp_path, monkeypatch):
    seen = {}

    def plan(net, example_input, **options):
        seen.update(options, shape=tuple(example_input.shape))
        return real(net, example_input)

    real = gp.plan
    monkeypatch.setattr(command, 'make_plan', plan)
    budgets = ['--macs', '240M', '--params', '0.5', '--latency', '12ms']
    budgets += ['--latency-backend', 'fused']
    others = ['--exclude', 'a', 're:b', '--no-keep-first', '--seed', 3, '--size', 24, 40]
    ok('plan', model[0], '-o', tmp_path / 'p.json', *budgets, *others)
    assert seen.pop('latency_backend') == 'fused' and seen.pop('progress').__name__ == 'show'
    assert seen == {
        'exclude': ['a', 're:b'], 'macs': '240M',
        'params': 0.5, 'latency': '12ms', 'seed': 3, 'keep_first': False, 'keep_last': True,
        'shape': (1, 3, 24, 40),
    }  # fmt: skip


def test_a_backend_without_a_budget_of_time_is_refused(refused, model, tmp_path):
    line = refused('plan', model[0], '-o', tmp_path / 'p.json', '--latency-backend', 'fused')
    assert '--latency' in line and 'no latency was given' in line


def test_a_budget_is_scored_on_pictures(ok, model, pictures, tmp_path, monkeypatch):
    seen = {}
    real = gp.plan
    monkeypatch.setattr(
        command, 'make_plan', lambda net, x, **options: seen.update(options) or real(net, x)
    )
    budget = ['--macs', '0.6', '--data', pictures / 'train/red', '--images', 5]
    ok('plan', *model, '-o', tmp_path / 'p.json', *budget)
    assert [x.shape for x in seen['calibration']] == [(5, 3, 32, 32)]


def test_a_budget_of_error_needs_images(ok, refused, model, pictures, tmp_path):
    budget = ['--max-divergence', '0.5', '-o', tmp_path / 'p.json']
    assert 'needs calibration images (--data)' in refused('plan', *model, *budget)
    ok('plan', *model, *budget, '--data', pictures / 'train', '--images', 36, '--no-keep-last')
    plan = json.loads((tmp_path / 'p.json').read_text())
    assert plan['divergence']['limit'] == 0.5
    assert plan['divergence']['measured'] <= 0.5


def test_apply_fits_to_flat_pictures_and_a_new_process_restores_it(ok, model, pictures, tmp_path):
    plan, weights = tmp_path / 'plan.json', tmp_path / 'converted.pth'
    ok('plan', *model, '--no-keep-last', '-o', plan)
    out = ok(
        'convert', model[0], plan, '--data', pictures / 'train/red', '--size', 32, '-o', weights
    )
    assert '| original | 0.004 | 0.28 |' in out and '| converted |' in out
    errors = [row.error for row in gp.ConversionPlan.load(tmp_path / 'converted.plan.json').layers]
    assert errors[0] is None and all(0 < error < 1 for error in errors[1:])
    code = f"""
import torch
from ghost_plugin.conversion.restore import load_converted
from ghost_plugin.cli.model_loading import load
model = load_converted(load({model[0]!r}).model, {str(plan)!r}, {str(weights)!r})
torch.save(model(torch.ones(2, 3, 32, 32)), {str(tmp_path / 'there.pth')!r})
"""
    subprocess.run([sys.executable, '-c', code], check=True)
    here = gp.ConversionPlan.load(plan).apply(model_loading.load(model[0]).model, inherit=False)
    here.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    there = torch.load(tmp_path / 'there.pth', weights_only=True)
    assert torch.equal(there, here.eval()(torch.ones(2, 3, 32, 32)))
    assert sorted(p.name for p in tmp_path.glob('*.partial')) == []


def test_a_model_is_planned_and_converted_in_one_command(ok, refused, model, tmp_path):
    out = tmp_path / 'both.safetensors'
    ok('convert', *model, '--ratio', 4, '-o', out)
    plan = gp.ConversionPlan.load(tmp_path / 'both.plan.json')
    assert [row.ratio for row in plan.layers if row.converts] == [4]
    ghost = plan.apply(model_loading.load(model[0]).model)
    assert gp.load_weights(ghost, out).missing == ()
    given = refused('convert', model[0], tmp_path / 'both.plan.json', '-o', out, '--ratio', 2)
    assert 'leave them or the plan out' in given


def test_random_weights_are_noted(cli, tmp_path):
    pytest.importorskip('timm')
    options = ['--size', 32, '-o', tmp_path / 'net.pth']
    status, _, err = cli('convert', 'timm:test_resnet', *options)
    assert status == 0 and err == (
        'note: timm:test_resnet has random weights; give --checkpoint or --pretrained\n'
    )


def test_report(ok, made):
    assert '| Conv | Kind | Decision |' in ok('report', made[0])
    assert json.loads(ok('report', made[0], '--json'))['rows'][0]['name'] == '0'


def test_report_draws(ok, made, tmp_path):
    if not hasattr(gp.ConversionPlan, 'draw'):
        pytest.skip('plans cannot be drawn yet')
    ok('report', made[0], '--plot', tmp_path / 'plan.png')
    assert (tmp_path / 'plan.png').read_bytes().startswith(b'\x89PNG')


def test_evaluate(ok, model, made, pictures):
    found = json.loads(ok('evaluate', *model, '--data', pictures, '--json'))
    assert found['images'] == 12 and 0 <= found['top1'] <= 100 and found['top5'] is None
    options = ['--plan', made[0], '--weights', made[1]]
    ghost = json.loads(ok('evaluate', *model, *options, '--json'))
    assert ghost['macs'] < found['macs'] and ghost['params'] < found['params']
    assert ghost['latency_ms'] > 0 and 'torch' in ghost['setup'] and 'top1' not in ghost
    out = ok('evaluate', *model, *options, '--data', pictures, '--split', 'train')
    assert '| Top-1 (%) | Images | Params (M) | MACs (M) | Latency (ms) |' in out
    assert '| 36 |' in out and 'latency: ' in out


def test_classes_may_have_indices_of_their_own(ok, model, pictures, tmp_path):
    labels = tmp_path / 'labels.json'
    labels.write_text('{"red": 4, "green": 0, "blue": 6}')
    classes = ['--num-classes', 8, '--labels', labels]
    found = json.loads(ok('evaluate', *model, *classes, '--data', pictures, '--json'))
    assert found['top5'] is not None
    ok('finetune', *model, *classes, *training(pictures, tmp_path / 'w.pth', '--epochs', 1))


def test_the_original_is_trained_then_teaches(ok, model, pictures, tmp_path):
    teacher, plan = tmp_path / 'teacher.pth', tmp_path / 'plan.json'
    options = ['--epochs', 8, '--lr', 0.1, '--json']
    history = json.loads(ok('finetune', *model, *training(pictures, teacher, *options)))['history']
    assert history[-1]['top1'] > 90 and len(history) == 8
    model = [*model, '--checkpoint', teacher]
    ok('plan', *model, '-o', plan)
    ok('convert', model[0], plan, *model[1:], '--data', pictures, '-o', tmp_path / 'c.pth')
    out = ok('finetune', *model, plan, '--weights', tmp_path / 'c.pth',
             *training(pictures, tmp_path / 't.pth', '--epochs', 2.5, '--ema', 0.9, '--no-flip',
                       '--optimizer', 'adamw', '--accumulate', 2, '--amp'))  # fmt: skip
    assert out.startswith('top-1 before: ')
    assert out.count('\n| ') == 5 and '| 3 |' in out
    again = ['--plan', plan, '--weights', tmp_path / 't.pth', '--data', pictures, '--json']
    found = json.loads(ok('evaluate', model[0], *again, '--size', 32))
    assert out.splitlines()[-3].endswith(f'| {found["top1"]:.2f} |')


def test_a_training_that_loses_accuracy_says_so(cli, model, made, pictures, tmp_path, monkeypatch):
    shares = iter([{'top1': 90.0}, {'top1': 30.0}])
    monkeypatch.setattr(command.evaluation, 'top1', lambda *args, **options: next(shares))
    status, out, err = cli('finetune', model[0], made[0], '--weights', made[1], *model[1:],
                           *training(pictures, tmp_path / 't.pth', '--epochs', 1))  # fmt: skip
    assert status == 0 and 'top-1 before: 90.00 %' in out
    assert 'top-1 fell from 90.00 to 30.00 %' in err and str(made[1]) in err


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_the_same(ok, model, made, pictures, tmp_path):
    whole, cut = tmp_path / 'whole.pth', tmp_path / 'cut.pth'
    start = ['finetune', model[0], made[0], '--weights', made[1], *model[1:]]
    ok(*start, *training(pictures, whole, '--epochs', 60))
    command = [
        sys.executable,
        '-m',
        'ghost_plugin.cli.main',
        *start,
        *training(pictures, cut, '--epochs', 60),
    ]
    env = {**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())}  # sums in equal order
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    while not cut.with_name('cut.pth.state').exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists()
    state = torch.load(cut.with_name('cut.pth.state'), weights_only=True)
    assert 0 < state['step'] < 180
    ok(*start, *training(pictures, cut, '--epochs', 60, '--resume'))
    one, other = (torch.load(path, weights_only=True) for path in (whole, cut))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    'options, said',
    [
        (['--macs', '240X'], "'240X' is neither a share (0.6) nor a number (240M)"),
        (['--macs', '1.5'], "'1.5' is neither"),
        (['--macs', '0'], "'0' is neither"),
        (['--latency', 'soon'], "'soon' is neither a share (0.6) nor a time (12ms)"),
        (['--ratio', '-1'], "'-1' is not a number above 0"),
        (['--size', '1', '2', '3'], '--size takes one size'),
        (['--size', 'big'], 'not a whole number'),
        (['--num-classes', '0'], 'not a whole number'),
        (['--include', 'layer9'], "'layer9' matches no conv"),
        (['--dw-size', '2'], 'odd'),
        (['--std', '0', '0', '0'], 'std above 0'),
        (['--device', 'abacus'], "no device 'abacus' here"),
        (['--checkpoint', 'none.pth'], "no checkpoint at 'none.pth'"),
        (['--pretrained'], 'no published weights'),
        (['--fast'], 'unknown arguments: --fast'),
    ],
    ids=str,
)
def test_bad_options(refused, model, tmp_path, options, said):
    assert said in refused('plan', *model, '-o', tmp_path / 'p.json', *options)
    assert not (tmp_path / 'p.json').exists()


def test_pictures_without_a_budget_are_refused(refused, model, tmp_path):
    said = refused('plan', *model, '-o', tmp_path / 'p.json', '--data', 'none')
    assert 'only a budget' in said and '--macs' in said


def test_bad_models(refused, model, tmp_path):
    out = ['-o', tmp_path / 'p.json']
    assert "no function 'nets'; it has net" in refused('plan', f'{tmp_path}/nets.py:nets', *out)
    assert 'no file at' in refused('plan', 'none.py:net', *out)
    assert 'a model is timm:NAME' in refused('plan', 'ghost', *out)
    assert 'does not run on such an image' in refused('plan', model[0].replace(':net', ':other'),
                                                       '--size', 2, *out)  # fmt: skip
    assert 'is a folder' in refused('plan', *model, '-o', tmp_path)


def test_bad_plans_and_weights(refused, model, made, pictures, tmp_path):
    plan = made[0]
    apply = ['-o', tmp_path / 'w.pth', *model[1:]]
    other = model[0].replace(':net', ':other')
    assert 'made for another' in refused('convert', other, plan, *apply)
    assert 'none.json' in refused('convert', model[0], 'none.json', *apply)
    assert 'not a conversion plan' in refused('convert', model[0], tmp_path / 'nets.py', *apply)
    assert 'no folder or zip' in refused('convert', model[0], plan, *apply, '--data', 'none')
    assert not (tmp_path / 'w.pth').exists()
    evaluate = ['evaluate', *model, '--plan', plan]
    assert 'go together' in refused(*evaluate)
    assert 'no checkpoint at' in refused(*evaluate, '--weights', 'none.pth')
    torch.save(model_loading.load(model[0]).model.state_dict(), tmp_path / 'dense.pth')
    assert 'holds other weights' in refused(*evaluate, '--weights', tmp_path / 'dense.pth')
    tune = ['finetune', *model, *training(pictures, tmp_path / 'w.pth'), plan]
    assert 'go together' in refused(*tune)
    steps = refused('convert', model[0], plan, *apply, '--data', pictures, '--steps', 3)
    assert '--reconstruct' in steps
    assert 'of several values go last' in refused('convert', *model, plan, '-o', tmp_path / 'w.pth')


def test_no_result_takes_the_place_of_what_it_is_made_from(refused, model, made, tmp_path):
    plan, (name, *size) = made[0], model
    kept = plan.read_bytes()
    said = refused('convert', name, plan, '-o', plan, *size)
    assert 'would replace' in said
    weights = tmp_path / 'dense.pth'
    torch.save(model_loading.load(model[0]).model.state_dict(), weights)
    given = ['--checkpoint', weights, '-o', weights, *size]
    assert 'give another --out' in refused('convert', name, plan, *given)
    assert plan.read_bytes() == kept and 'conv' not in torch.load(weights)


def test_bad_pictures(refused, model, pictures, tmp_path):
    (tmp_path / 'empty').mkdir()
    evaluate = ['evaluate', *model, '--data']
    assert 'no images' in refused(*evaluate, tmp_path / 'empty')
    assert 'no class folders' in refused(*evaluate, pictures / 'train/red')
    assert "no split 'extra'" in refused(*evaluate, pictures, '--split', 'extra')
    wrong = refused(*evaluate, pictures, '--num-classes', 5)
    assert '3 classes and the model 5 outputs; --num-classes 3' in wrong
    tune = ['finetune', *model, *training(pictures, tmp_path / 'w.pth')]
    assert 'must be 0 or more and below 1' in refused(*tune, '--ema', 2)
    (pictures / 'val/pink').mkdir()
    (pictures / 'val/red/0.png').rename(pictures / 'val/pink/0.png')
    assert "class 'pink' that has no index" in refused(*tune)


def test_another_training_is_not_resumed(cli, refused, model, pictures, tmp_path):
    tune = ['finetune', *model, *training(pictures, tmp_path / 'w.pth', '--epochs', 1)]
    status, _, err = cli(*tune, '--label-weight', 0.5)
    assert status == 0 and 'no teacher; --label-weight has no effect' in err
    assert 'is of another training: lr' in refused(*tune, '--lr', 0.3, '--resume')


def test_interrupt(cli, model, pictures, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, 'finetune', interrupted)
    status, _, err = cli('finetune', *model, *training(pictures, tmp_path / 'w.pth'))
    assert status == 2 and '--resume continues' in err and err.count('\n') == 1
