"""Kinds of model whose backbone can be swapped, recognised by the base class of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ....utils import optional
from . import classifiers, detectors, dummy_batches
from .probing import describe_error, quiet_logging

optional.require('mmengine', 'mmcv')

from mmengine.registry import MODELS, init_default_scope


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: recognised by its base class, changed and tried by functions.

    Attributes:
        name: Word for it in messages.
        base_classes: Names of classes; a model of this kind inherits one of them.
        scope: Package of its base classes, in which names are looked up by default.
        change: Called with the model's config, the new backbone's config and the scope; returns
            the change of the model's config and remarks.
        batch: Called with the model's config and the image size in pixels; returns a dummy batch.
        samples: Called with the number of images and their height and width in pixels; returns
            data samples without labels. Without it the model is called with images only.
        image_shape: Called like ``batch``; returns height and width in pixels.
        trial_sizes: Image sizes in pixels for a training step, the next where one is too small.
        cost_size: Image size in pixels for a table of costs.
    """

    name: str
    base_classes: tuple[str, ...]
    scope: str
    change: Callable[[Mapping, dict[str, Any], str], tuple[dict[str, Any], list[str]]]
    batch: Callable[[Mapping, int], dict[str, Any]]
    samples: Callable[[int, tuple[int, int]], list] | None = None
    image_shape: Callable[[Mapping, int], tuple[int, int]] = dummy_batches.square
    trial_sizes: tuple[int, ...] = (128, 320)
    cost_size: int = 256


_last_level = partial(detectors.change, projections=True, last_level=True)
KINDS = (
    ModelKind(
        'classifier',
        ('BaseClassifier', 'BaseSelfSupervisor', 'ImageClassifier'),
        'mmpretrain',
        classifiers.change,
        dummy_batches.classification_batch,
        trial_sizes=(64, 224),
        cost_size=224,
    ),
    ModelKind(
        'detector',
        ('BaseDetector', 'BaseMOTModel'),
        'mmdet',
        partial(detectors.change, projections=True, last_level=False),
        dummy_batches.detection_batch,
        dummy_batches.detection_samples,
    ),
    ModelKind(
        'segmentor',
        ('BaseSegmentor',),
        'mmseg',
        _last_level,
        dummy_batches.segmentation_batch,
        dummy_batches.segmentation_samples,
    ),
    ModelKind(
        'pose estimator',
        ('BasePoseEstimator',),
        'mmpose',
        _last_level,
        dummy_batches.pose_batch,
        dummy_batches.pose_samples,
        image_shape=dummy_batches.pose_shape,
        trial_sizes=(256,),
    ),
)
# Base classes that inherit one of the above or resemble it, and packages of such models.
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
}


def find_kind(part: Mapping, scope: str | None) -> ModelKind:
    """Find the kind of a model by the class that its ``type`` names.

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
        f'{name} is not registered here {where}, so the kind of the model is unknown; '
        'install its package, or name the module that registers it in custom_imports'
    )


def kind_of_class(model: type) -> ModelKind:
    """Find the kind of a class of models.

    Raises:
        ValueError: It is of no kind whose backbone can be swapped.
    """
    inherited = [base.__name__ for base in model.__mro__]
    packages = {base.__module__.split('.')[0] for base in model.__mro__}
    of = f'({model.__module__})'
    for name in (*inherited, *sorted(packages)):
        why = _UNSUPPORTED_CLASSES.get(name) or _UNSUPPORTED_PACKAGES.get(name)
        if why:
            _refuse(model.__name__, of, why)
    for kind in KINDS:
        if set(inherited) & set(kind.base_classes):
            return kind
    known = ', '.join(name for kind in KINDS for name in kind.base_classes)
    _refuse(model.__name__, of, f'it inherits none of {known}')


def _refuse(name: str, of: str, why: str) -> None:
    supported = ', '.join(f'{kind.name}s ({kind.scope})' for kind in KINDS)
    raise ValueError(
        f'the backbone of {name} {of} cannot be swapped: {why}; what can be swapped: {supported}'
    )


def _registered(name: str, scope: str) -> type | None:
    """Look up the class of a registered name, None where there is none."""
    try:
        with quiet_logging():
            init_default_scope(scope)
            with MODELS.switch_scope_and_registry(None) as registry:
                return registry.get(name)
    except Exception as error:  # a package that is installed and broken raises anything
        raise ValueError(
            f'the package of {name} ({scope}) cannot be imported: {describe_error(error)}'
        ) from error
