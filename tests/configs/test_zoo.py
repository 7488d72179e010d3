"""The model zoo as OpenMMLab's tools read it: every config once, with figures that are true."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')
pytest.importorskip('mmdet')
modelindex = pytest.importorskip('modelindex.load_model_index')

from mmengine.registry import MODELS, init_default_scope
from mmpretrain.apis import ModelHub, get_model

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.runner_setup import read_config
from ghost_plugin.utils import optional

MIM = Path(gp.__file__).parent / '.mim'  # where mim looks in an installed package
LEAVES = {
    str(path.relative_to(MIM))
    for path in MIM.glob('configs/*/*.py')
    if path.parent.name != '_base_'
}
NUM_IMAGES = {'ImageNet-1k': 1_281_167, 'CIFAR-10': 50_000}
CROPS = {'RandomCrop': 'crop_size', 'RandomResizedCrop': 'scale'}
# Models that are built by default; the others are slow.
FAST = (
    'ghostnet-050_digits',
    'ghostnet-100_8xb128-400e_in1k',
    'ghostnetv3-100_8xb128-300e_in1k',
    'gghost-032_8xb32-90e_in1k',
    'retinanet_ghostnet-100_fpn_bccd',
    'fpn-head_ghostnet-050_digits',
    'td-hm_ghostnet-050_digits',
)


def zoo():
    """What a tool of OpenMMLab would show."""
    index = modelindex.load(str(MIM / 'model-index.yml'))
    index.build_models_with_collections()
    return index


ENTRIES = list(zoo().models)


def test_every_config_is_listed_once_under_its_name():
    assert sorted(model.config for model in ENTRIES) == sorted(LEAVES)
    assert all(model.name == Path(model.config).stem for model in ENTRIES)
    assert all(model.metadata.data['Training Data'] for model in ENTRIES)


def test_collections_are_known_and_have_a_page():
    collections = {collection.name: collection for collection in zoo().collections}
    assert {model.in_collection for model in ENTRIES} == set(collections)
    assert all((MIM / one.readme).is_file() for one in collections.values())


def test_accuracies_stand_on_the_results_page_only():
    assert [model.name for model in ENTRIES if model.results] == []


def test_page_computes_the_cost_of_a_training():
    page = (MIM / 'configs/classification/README.md').read_text()
    rows = dict(re.findall(r'^\| `(\S+)` \| (\d.*) \|$', page, re.MULTILINE))
    expected = {}
    for model in ENTRIES:
        figures = model.metadata.data
        if figures['Training Data'] in NUM_IMAGES and 'FLOPs' in figures:
            macs, epochs = figures['FLOPs'], figures['Epochs']
            epoch = 3 * macs * NUM_IMAGES[figures['Training Data']]
            cells = macs / 1e6, epoch / 1e15, epochs * epoch / 1e15
            expected[model.name] = ' | '.join([str(epochs), *(f'{cell:,.4g}' for cell in cells)])
    assert rows == expected


@pytest.mark.parametrize(
    'entry',
    [
        pytest.param(
            model,
            id=model.name,
            marks=[pytest.mark.slow] * (model.name not in FAST),
        )
        for model in ENTRIES
        if 'Parameters' in model.metadata.data
    ],
)
def test_figures_are_those_of_the_model(entry):
    figures = entry.metadata.data
    cfg = read_config(MIM / entry.config)
    if not optional.usable(f'{cfg.default_scope}.models'):
        pytest.skip(f'needs {cfg.default_scope}')
    init_default_scope(cfg.default_scope)
    model = cfg.model.student if 'student' in cfg.model else cfg.model
    model = MODELS.build(model)
    assert sum(p.numel() for p in model.parameters()) == figures['Parameters']
    assert cfg.train_dataloader.batch_size == figures['Batch Size']
    assert cfg.train_cfg.max_epochs == figures['Epochs']
    if 'FLOPs' in figures:
        steps = cfg.train_dataloader.dataset.pipeline
        size = next(step[CROPS[step.type]] for step in steps if step.type in CROPS)
        assert gp.count(model, torch.zeros(1, 3, size, size)).macs == figures['FLOPs']


def test_mmpretrain_builds_by_name(fresh_model_hub):
    ModelHub.register_model_index(MIM / 'configs/classification/metafile.yml', MIM)
    model = get_model('ghostnet-050_digits')
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
