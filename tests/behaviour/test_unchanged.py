"""Results that a rewrite of the code must not change, compared with those of an earlier commit.

``python tests/behaviour/test_unchanged.py`` writes the file of results anew. On the kind of machine
that wrote it results are compared bit by bit, elsewhere and after gradient steps to three digits.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import ghost_plugin as gp
from ghost_plugin.conversion import apply_plan

ROUNDED = ('small',)  # another memory format sums in another order
FILE = Path(__file__).with_name('unchanged.json')
CONFIGS = (
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
    'mmdet::yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py',
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    'mmpretrain::resnet/resnet18_8xb32_in1k.py',
    'mmpretrain::vgg/vgg11_8xb32_in1k.py',
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py',
    'mmpretrain::lenet/lenet5_mnist.py',
)


def machine() -> str:
    return f'torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}'


def images(number: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (size, size), mode='bilinear')
    return smooth + 0.3 * torch.rand(number, 3, size, size, generator=generator)


def small() -> nn.Module:
    def unit(inside: int, out: int, **options) -> list[nn.Module]:
        conv = nn.Conv2d(inside, out, 3, padding=1, bias=False, **options)
        return [conv, nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(
        *unit(3, 16), *unit(16, 32, stride=2), *unit(32, 32), *unit(32, 48), *unit(48, 24),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def network(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == 'small':
        model = small()
    else:
        model = getattr(pytest.importorskip('torchvision').models, name)(num_classes=7)
    for step in range(5):
        model.train()(images(8, 64, 50 + step))
    return model.eval()


def digest(tensors: list[torch.Tensor]) -> dict:
    """Hash of all bits, and sizes that tell how far a result is when they differ."""
    flat = [t.detach().contiguous().double() for t in tensors]
    packed = hashlib.sha256()
    for tensor in tensors:
        packed.update(tensor.detach().contiguous().numpy().tobytes())
    return {
        'sha256': packed.hexdigest(),
        'norms': [round(t.norm().item(), 9) for t in flat[:: max(1, len(flat) // 12)]],
    }


def of_backbone(name: str) -> dict:
    torch.manual_seed(0)
    model = getattr(gp, name)(**({} if name == 'GGhostRegNet' else {'width': 0.5})).eval()
    fused = gp.fuse(model)
    x = images(2, 64, 9)
    with torch.no_grad():
        return {'outputs': digest(list(model(x))), 'fused': digest(list(fused(x)))}


def of_conversion(name: str, plan_options: dict, apply_options: dict) -> dict:
    model = network(name)
    plan = gp.plan(model, images(1, 64, 1), dw_size=3, group_size=1, **plan_options)
    result = apply_plan(plan, model, repair=False, **apply_options)
    converted, plan = result.model, result.plan
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder, 'plan.json'))
        written = json.loads(Path(folder, 'plan.json').read_text())
    for key in ('format_version', 'versions'):
        written.pop(key, None)
    for row in written['rows']:  # sums in another order are the same result
        row['scores'] = {key: f'{score:.6g}' for key, score in row['scores'].items()}
        row['error'] = row['error'] and f'{row["error"]:.6g}'
    with torch.no_grad():
        outputs = [converted(images(4, 64, 77)), gp.fuse(converted)(images(4, 64, 77))]
    return {
        'plan': hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest(),
        'decisions': [row['decision'] for row in written['rows']],
        'weights': digest(list(converted.state_dict().values())),
        'outputs': digest(outputs),
    }


def of_swap(config: str) -> dict:
    pytest.importorskip('mmengine')
    pytest.importorskip(config.partition('::')[0])
    from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone

    swap = swap_backbone(load_config(config), 'ghost_plugin.GhostNet', {'width': 0.5})
    text = json.dumps(swap.change, sort_keys=True, default=str)
    return {'change': hashlib.sha256(text.encode()).hexdigest(), 'remarks': list(swap.remarks)}


CASES = {
    **{name: (of_backbone, name) for name in ('GhostNet', 'GhostNetV2', 'GhostNetV3')},
    'GGhostRegNet': (of_backbone, 'GGhostRegNet'),
    'resnet18': (of_conversion, 'resnet18', {'macs': 0.6}, {}),
    'mobilenet_v2': (
        of_conversion, 'mobilenet_v2', {'macs': 0.7}, {'calibration': [images(40, 32, 5)]},
    ),
    'small': (
        of_conversion, 'small', {'macs': 0.6, 'calibration': [images(48, 32, 6)]},
        {'calibration': [images(48, 32, 6)], 'reconstruct': 'block', 'steps': 10},
    ),
    **{config: (of_swap, config) for config in CONFIGS},
}  # fmt: skip


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('name', CASES)
def test_result_is_that_of_the_earlier_commit(name, one_thread):
    stored = json.loads(FILE.read_text())
    function, *arguments = CASES[name]
    got, want = function(*arguments), stored['results'][name]
    exact = name not in ROUNDED and machine() == stored['machine']
    if exact or function is of_swap:
        assert got == want
        return
    for key, value in got.items():
        if 'norms' in value:
            assert value['norms'] == pytest.approx(want[key]['norms'], rel=1e-3, abs=1e-3)


if __name__ == '__main__':
    torch.set_num_threads(1)
    results = {name: function(*arguments) for name, (function, *arguments) in CASES.items()}
    FILE.write_text(json.dumps({'machine': machine(), 'results': results}, indent=1) + '\n')
    sys.exit(0)
