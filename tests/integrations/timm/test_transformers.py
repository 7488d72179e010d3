"""The models inside transformers, which creates them with weights of its own choice."""

import pytest
import torch

pytest.importorskip('timm')
transformers = pytest.importorskip('transformers')

from helpers.timm_nets import small


@small
def test_saved_models_give_their_outputs_again(name, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    name, _, arch = name.partition(', arch ')
    config = transformers.TimmWrapperConfig(
        architecture=name, num_labels=4, model_args={'arch': arch} if arch else None
    )
    model = transformers.TimmWrapperForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(again(images).logits, model(images).logits)
