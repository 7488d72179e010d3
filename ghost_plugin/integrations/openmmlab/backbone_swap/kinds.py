"""The kinds of model whose backbone can be swapped, told apart by the class of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ....utils import optional
from . import classifiers, detectors, dummy_batches

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope

from .foreign import quiet, reason


@dataclass(frozen=True)
class ModelKind:
    """One kind of model: how it is known, changed and tried.

    Attributes:
        name: The word for it in messages.
        base_classes: Names of classes; a model of this kind inherits one of them.
        scope: Package of its base classes, in which names are looked up by default.
        change: Called with the model's config, the new backbone's config and the scope; returns
            the change of the model's config and remarks.
        batch: Called with the model's config and the image size in pixels; returns a dummy batch.
        image_shape: Called like ``batch``; returns height and width in pixels.
        trial_sizes: Image sizes in pixels for a training step, the next where one is too small.
        cost_size: Image size in pixels for a table of costs.
    """

    name: str
    base_classes: tuple[str, ...]
    scope: str
    change: Callable[[Mapping, dict[str, Any], str], tuple[dict[str, Any], list[str]]]
    batch: Callable[[Mapping, int], dict[str, Any]]
    image_shape: Callable[[Mapping, int], tuple[int, int]]
    trial_sizes: tuple[int, ...]
    cost_size: int


KINDS = (
    ModelKind(
        name='classifier',
        base_classes=('BaseClassifier', 'BaseSelfSupervisor', 'ImageClassifier'),
        scope='mmpretrain',
        change=classifiers.change,
        batch=dummy_batches.classification_batch,
        image_shape=dummy_batches.square,
        trial_sizes=(64, 224),
        cost_size=224,
    ),
    ModelKind(
        name='detector',
        base_classes=('BaseDetector', 'BaseMOTModel'),
        scope='mmdet',
        change=partial(detectors.change, projections=True, last_level=False),
        batch=dummy_batches.detection_batch,
        image_shape=dummy_batches.square,
        trial_sizes=(128, 320),
        cost_size=256,
    ),
    ModelKind(
        name='segmentor',
        base_classes=('BaseSegmentor',),
        scope='mmseg',
        change=partial(detectors.change, projections=False, last_level=True),
        batch=dummy_batches.segmentation_batch,
        image_shape=dummy_batches.square,
        trial_sizes=(128, 320),
        cost_size=256,
    ),
    ModelKind(
        name='pose estimator',
        base_classes=('BasePoseEstimator',),
        scope='mmpose',
        change=partial(detectors.change, projections=False, last_level=True),
        batch=dummy_batches.pose_batch,
        image_shape=dummy_batches.pose_shape,
        trial_sizes=(256,),
        cost_size=256,
    ),
)
# Base classes that inherit one of the above or look like it, and packages whose models do.
_UNSUPPORTED_CLASSES = {
    'Base3DDetector': 'it reads point clouds or several cameras',
    'Base3DSegmentor': 'it reads point clouds',
    'BaseRecognizer': 'it reads clips of several frames',
    'DepthEstimator': 'it learns depth, which no training step here verifies',
    'MultimodalEncoderDecoder': 'it reads text besides images',
    'PoseLifter': 'it reads keypoints and no images',
}
_UNSUPPORTED_PACKAGES = {
    'mmaction': 'its recognizers read clips of several frames',
    'mmagic': 'its models generate or restore images',
    'mmdet3d': 'its detectors read point clouds or several cameras',
    'mmocr': 'its models read text, which no training step here verifies',
    'mmrotate': 'its boxes are rotated, which no training step here verifies',
    'mmyolo': 'its necks and heads scale the channels that a config names',
}


def find_kind(part: Mapping, scope: str | None) -> ModelKind:
    """The kind of a model by the class that its ``type`` names.

    Args:
        part: Config of the model with the backbone.
        scope: ``default_scope`` of the whole config, if it has one.

    Raises:
        ValueError: The class is not registered, or is of no kind whose backbone can be swapped.
    """
    registered = part.get('type')
    name = registered.__name__ if isinstance(registered, type) else str(registered)
    for package in (name.split('.')[0], scope):
        if package in _UNSUPPORTED_PACKAGES:
            _refuse(name, f'of {package}', _UNSUPPORTED_PACKAGES[package])
    if isinstance(registered, type):
        return kind_of_class(registered)
    for place in [scope] if scope else [kind.scope for kind in KINDS]:
        found = _registered(name, place)
        if found is not None:
            return kind_of_class(found)
    where = f'in the scope {scope!r}' if scope else 'and the config has no default_scope'
    raise ValueError(
        f'{name} is not registered here {where}, so nothing tells what kind of model it is; '
        'install its package, or name the module that registers it in custom_imports'
    )


def kind_of_class(model: type) -> ModelKind:
    """The kind of a class of models.

    Raises:
        ValueError: It is of no kind whose backbone can be swapped.
    """
    inherited = [base.__name__ for base in model.__mro__]
    packages = {base.__module__.split('.')[0] for base in model.__mro__}
    of = f'({model.__module__})'
    for base in inherited:
        if base in _UNSUPPORTED_CLASSES:
            _refuse(model.__name__, of, _UNSUPPORTED_CLASSES[base])
    for package in sorted(packages & set(_UNSUPPORTED_PACKAGES)):
        _refuse(model.__name__, of, _UNSUPPORTED_PACKAGES[package])
    for kind in KINDS:
        if set(inherited) & set(kind.base_classes):
            return kind
    _refuse(model.__name__, of, f'it inherits none of {_all_base_classes()}')


def _refuse(name: str, of: str, why: str) -> None:
    supported = ', '.join(f'{kind.name}s ({kind.scope})' for kind in KINDS)
    raise ValueError(
        f'the backbone of {name} {of} cannot be swapped: {why}; what can be swapped: {supported}'
    )


def _all_base_classes() -> str:
    return ', '.join(name for kind in KINDS for name in kind.base_classes)


def _registered(name: str, scope: str) -> type | None:
    """The class of a registered name, None where there is none."""
    try:
        with quiet():
            init_default_scope(scope)
            with MODELS.switch_scope_and_registry(None) as registry:
                return registry.get(name)
    except Exception as error:  # a package that is installed and broken raises anything
        raise ValueError(
            f'the package of {name} ({scope}) cannot be imported: {reason(error)}'
        ) from error
