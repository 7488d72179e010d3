"""Images in class folders, in a folder or a zip, with or without split folders above them."""

import copy
import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils import optional

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
# Folder names of each split; the first that exists is used.
_SPLITS = {
    'train': ('train', 'trainval', 'training'),
    'val': ('val', 'valid', 'validation', 'test'),
    'test': ('test',),
}
_KNOWN = {name for names in _SPLITS.values() for name in names}


class ImageFolder:
    """A dataset of (image, class index); images are decoded when they are indexed.

    The class of ``.../cat/7.jpg`` is cat, and ``.../train/cat/7.jpg`` also belongs to a split.
    Images without a class folder get the index -1. With ``classes``, the last part of a flat
    image's name (``0001_n01440764.jpg``) is its class if all images have one. EXIF orientation is
    ignored, as in timm and torchvision.

    Args:
        source: Folder or zip.
        split: ``'train'`` or ``'val'`` (also named valid, validation or test), where there are
            split folders.
        classes: Class indices by folder name; by default the sorted names are numbered.

    Attributes:
        names: Paths inside the source, sorted.
        labels: Class index of each image, None for a flat folder.
        classes: Class indices by name.
        transform: Called with the decoded RGB image, if not None.

    Raises:
        FileNotFoundError: No such folder or zip.
        ValueError: No images, no such split, or a class that ``classes`` lacks.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        split: str = 'train',
        classes: Mapping[str, int] | None = None,
    ) -> None:
        self.source = Path(source)
        self.transform: Callable[[Any], Any] | None = None
        self.names = _in_split(_image_paths(self.source), split, self.source)
        found = _class_names(self.names, classes)
        self.classes = dict(classes or {name: i for i, name in enumerate(sorted(set(found)))})
        unknown = sorted(set(found) - self.classes.keys())
        if unknown:
            raise ValueError(f'{self.source} has a class {unknown[0]!r} that has no index')
        self.labels = [self.classes[name] for name in found] if found else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.open(index)
        image = self.transform(image) if self.transform else image
        return image, self.labels[index] if self.labels else -1

    def some(self, number: int, seed: int = 0) -> 'ImageFolder':
        """A random subset in the original order.

        Args:
            number: Size of the subset; all images where there are fewer.
            seed: Seed of the choice.
        """
        chosen = sorted(random.Random(seed).sample(range(len(self)), min(number, len(self))))
        subset = copy.copy(self)
        subset.names = [self.names[i] for i in chosen]
        subset.labels = None if self.labels is None else [self.labels[i] for i in chosen]
        return subset

    def open(self, index: int) -> Any:
        """Decode one image to RGB.

        Raises:
            ImportError: Pillow is missing.
            ValueError: The image cannot be decoded to its end.
        """
        optional.require('PIL')
        from PIL import Image

        name = str(self.names[index])
        try:
            if self.source.is_dir():
                content = (self.source / name).read_bytes()
            else:
                content = _archive(self.source, os.getpid()).read(name)
            with Image.open(io.BytesIO(content)) as image:
                return image.convert('RGB')
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f'cannot read {name} of {self.source}: {error}; '
                'tools/data/prepare_folder.py leaves broken images out'
            ) from error


@lru_cache(maxsize=8)
def _archive(path: Path, process: int) -> zipfile.ZipFile:
    """An open zip; each process needs a file position of its own."""
    return zipfile.ZipFile(path)


def _image_paths(source: Path) -> list[PurePosixPath]:
    """Paths of all images relative to the source, sorted, without hidden ones."""
    if source.is_dir():
        found = [PurePosixPath(p.relative_to(source).as_posix()) for p in source.rglob('*')]
    elif not source.exists():
        raise FileNotFoundError(f'no folder or zip at {source}')
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            found = [PurePosixPath(name) for name in archive.namelist()]
    else:
        raise ValueError(f'{source} is neither a folder nor a zip')
    images = [
        path
        for path in found
        if path.suffix.lower() in _SUFFIXES
        and not any(part.startswith(('.', '__MACOSX')) for part in path.parts)
    ]
    if not images:
        raise ValueError(f'no images ({", ".join(_SUFFIXES)}) in {source}')
    return sorted(images)


def _in_split(paths: list[PurePosixPath], split: str, source: Path) -> list[PurePosixPath]:
    """The images of a split; all of them where there are no split folders."""
    present = {_split_of(path) for path in paths} - {''}
    if not present:
        return paths
    name = next((name for name in _SPLITS.get(split, (split,)) if name in present), None)
    if name is None:
        raise ValueError(f'{source} has no split {split!r}, only {", ".join(sorted(present))}')
    return [path for path in paths if _split_of(path) == name]


def _split_of(path: PurePosixPath) -> str:
    """The split folder above the class folder or, for flat splits, above the images; or ''."""
    above = [part.lower() for part in path.parts[-3:-1]]
    return next((part for part in above if part in _KNOWN), '')


def _class_names(paths: Sequence[PurePosixPath], classes: Mapping[str, int] | None) -> list[str]:
    """The class name of each image, empty when they have none."""
    folders = [path.parent.name for path in paths]
    if all(folders) and not any(folder.lower() in _KNOWN for folder in folders):
        return folders
    ends = [path.stem.rpartition('_')[2] for path in paths]
    return ends if classes and all(end in classes for end in ends) else []


def read_labels(path: str | os.PathLike | None) -> dict[str, int] | None:
    """Read a JSON map from class names to indices; None for no path.

    ``imagenet-1k`` stands for timm's map of WordNet ids.

    Raises:
        ValueError: The file holds something else.
    """
    if path is None:
        return None
    if str(path) == 'imagenet-1k':
        optional.require('timm')
        from timm.data import ImageNetInfo

        info = ImageNetInfo('imagenet-1k')
        return {info.index_to_label_name(index): index for index in range(info.num_classes())}
    try:
        labels = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    indices = list(labels.values()) if isinstance(labels, dict) else [None]
    if not indices or not all(type(n) is int and n >= 0 for n in indices):
        raise ValueError(f'{path} must map names of classes to numbers from 0: {{"cat": 0}}')
    return labels
