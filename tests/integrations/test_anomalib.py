"""Our models as the feature extractors of anomalib."""

import pytest
import torch

timm = pytest.importorskip('timm')
pytest.importorskip('anomalib')

from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

import ghost_plugin  # noqa: F401

NAMES = ('ghostnet_plugin_050', 'ghostnet_plugin_v2_100', 'ghostnet_plugin_v3_100',
         'ghostnet_plugin_rep_050', 'ghostnet_plugin_gghost_032')  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', [PadimModel, PatchcoreModel])
def test_features_of_two_levels_score_images(name, kind):
    layers = timm.create_model(name, features_only=True).feature_info.module_name()[1:3]
    options = {'n_features': 8} if kind is PadimModel else {}
    model = kind(backbone=name, layers=layers, pre_trained=False, **options)
    images = torch.rand(6, 3, 64, 64)
    model.train()(images)
    model.fit() if kind is PadimModel else model.subsample_embedding(0.5)
    found = model.eval()(images[:2])
    assert found.anomaly_map.shape == (2, 1, 64, 64)
    assert found.anomaly_map.isfinite().all()
    assert found.pred_score.numel() == 2
