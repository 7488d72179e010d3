"""Pictures in class folders, in a folder or a zip, with or without split folders above them."""

import io
import json
import os
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ..utils import optional

optional.require('PIL')

from PIL import Image

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
# What a split folder may be called, the first that is there wins.
_SPLITS = {
    'train': ('train', 'trainval', 'training'),
    'val': ('val', 'valid', 'validation', 'test'),
    'test': ('test',),
}
_KNOWN = {name for names in _SPLITS.values() for name in names}


class ImageFolder:
    """Names of pictures and the index of each one's class; nothing is decoded yet.

    The class of ``.../cat/7.jpg`` is cat; ``.../train/cat/7.jpg`` belongs to a split besides, and
    without a folder around it a picture has no class. With ``classes``, the last part of a flat
    picture's name (``0001_n01440764.jpg``) is its class, if all have one.

    Args:
        source: Folder or zip.
        split: ``'train'`` or ``'val'`` (also named valid, validation or test), where there are
            split folders.
        classes: Index of each class by its folder's name; sorted names without it.

    Attributes:
        names: Paths inside the source, sorted.
        labels: Index of each picture's class, None for a flat folder.
        classes: Index of each class by name.

    Raises:
        FileNotFoundError: No such folder or zip.
        ValueError: No pictures, no such split, a class that ``classes`` lacks.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        split: str = 'train',
        classes: Mapping[str, int] | None = None,
    ) -> None:
        self.source = Path(source)
        self._archive: zipfile.ZipFile | None = None
        self._opener = 0
        self.names = _in_split(self._listed(), split, self.source)
        kinds = _kinds(self.names, classes)
        self.classes = dict(classes or {kind: i for i, kind in enumerate(sorted(set(kinds)))})
        unknown = sorted(set(kinds) - self.classes.keys())
        if unknown:
            raise ValueError(f'{self.source} has a class {unknown[0]!r} that has no index')
        self.labels = [self.classes[kind] for kind in kinds] if kinds else None

    def __len__(self) -> int:
        return len(self.names)

    def some(self, number: int, seed: int = 0) -> 'ImageFolder':
        """At most ``number`` of the pictures, drawn from ``seed``, in their order."""
        chosen = sorted(random.Random(seed).sample(range(len(self)), min(number, len(self))))
        part = object.__new__(ImageFolder)
        part.__dict__.update(self.__dict__, names=[self.names[i] for i in chosen])
        part.labels = None if self.labels is None else [self.labels[i] for i in chosen]
        return part

    def open(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """Decode one picture to RGB.

        Args:
            index: Its place in ``names``.
            size: (width, height) that is enough; a JPEG may come smaller then, and faster.

        Raises:
            ValueError: It cannot be read to its end.
        """
        try:
            with Image.open(io.BytesIO(self._bytes(str(self.names[index])))) as image:
                if size:
                    image.draft('RGB', size)
                return image.convert('RGB')
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f'cannot read {self.names[index]} of {self.source}: {error}; '
                'tools/prepare_folder.py leaves broken pictures out'
            ) from error

    def _listed(self) -> list[PurePosixPath]:
        """Paths of all pictures relative to the source, sorted; hidden ones are passed over."""
        source = self.source
        if source.is_dir():
            found = [PurePosixPath(p.relative_to(source).as_posix()) for p in source.rglob('*')]
        elif not source.exists():
            raise FileNotFoundError(f'no folder or zip at {source}')
        elif zipfile.is_zipfile(source):
            found = [PurePosixPath(name) for name in self._zip().namelist()]
        else:
            raise ValueError(f'{source} is neither a folder nor a zip')
        pictures = [p for p in found if p.suffix.lower() in _SUFFIXES and not _hidden(p)]
        if not pictures:
            raise ValueError(f'no pictures ({", ".join(_SUFFIXES)}) in {source}')
        return sorted(pictures)

    def _bytes(self, name: str) -> bytes:
        if self.source.is_dir():
            return (self.source / name).read_bytes()
        return self._zip().read(name)

    def _zip(self) -> zipfile.ZipFile:
        # Each worker process needs a file position of its own.
        if self._archive is None or self._opener != os.getpid():
            self._archive, self._opener = zipfile.ZipFile(self.source), os.getpid()
        return self._archive

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_archive': None}  # for processes that are not forked


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(('.', '__MACOSX')) for part in path.parts)


def _in_split(paths: list[PurePosixPath], split: str, source: Path) -> list[PurePosixPath]:
    """The pictures of a split; all of them where there are no split folders."""
    there = {_split_of(path) for path in paths} - {''}
    if not there:
        return paths
    name = next((name for name in _SPLITS.get(split, (split,)) if name in there), None)
    if name is None:
        raise ValueError(f'{source} has no split {split!r}, only {", ".join(sorted(there))}')
    return [path for path in paths if _split_of(path) == name]


def _split_of(path: PurePosixPath) -> str:
    """The split folder right above the class folder or, for flat splits, the pictures; or ''."""
    above = [part.lower() for part in path.parts[-3:-1]]
    return next((part for part in above if part in _KNOWN), '')


def _kinds(paths: Sequence[PurePosixPath], classes: Mapping[str, int] | None) -> list[str]:
    """Name of each picture's class, empty when they have none."""
    folders = [path.parent.name for path in paths]
    if all(folders) and not any(folder.lower() in _KNOWN for folder in folders):
        return folders
    ends = [path.stem.rpartition('_')[2] for path in paths]
    return ends if classes and all(end in classes for end in ends) else []


def read_labels(path: str | os.PathLike | None) -> dict[str, int] | None:
    """A JSON map from names of classes to indices; None for no path.

    ``imagenet-1k`` stands for timm's map of WordNet ids.

    Raises:
        ValueError: It is something else.
    """
    if path is None:
        return None
    if str(path) == 'imagenet-1k':
        return _imagenet()
    try:
        labels = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    numbers = list(labels.values()) if isinstance(labels, dict) else [None]
    if not numbers or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f'{path} must map names of classes to numbers from 0: {{"cat": 0}}')
    return labels


def _imagenet() -> dict[str, int]:
    optional.require('timm')
    from timm.data import ImageNetInfo

    info = ImageNetInfo('imagenet-1k')
    return {info.index_to_label_name(index): index for index in range(info.num_classes())}
