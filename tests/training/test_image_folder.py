"""Image folders: names, splits, classes, decoding."""

import pickle
import shutil
import zipfile

import pytest

pytest.importorskip('PIL')

from ghost_plugin.training.image_folder import ImageFolder, read_labels


def zipped(folder, to):
    with zipfile.ZipFile(to, 'w') as archive:
        for path in sorted(folder.rglob('*.png')):
            archive.write(path, path.relative_to(folder.parent))
    return to


@pytest.mark.parametrize('split, number', [('train', 36), ('val', 12)])
def test_folder_and_zip_hold_the_same(pictures, tmp_path, split, number):
    folder, archive = (
        ImageFolder(pictures, split),
        ImageFolder(zipped(pictures, tmp_path / 'p.zip'), split),
    )
    assert len(folder) == len(archive) == number
    assert folder.classes == archive.classes == {'blue': 0, 'green': 1, 'red': 2}
    assert folder.labels == archive.labels
    assert folder.open(5).tobytes() == archive.open(5).tobytes()
    assert pickle.loads(pickle.dumps(archive)).open(5).tobytes() == archive.open(5).tobytes()


def test_class_folders_alone_and_flat_folders(pictures):
    assert ImageFolder(pictures / 'val', 'train').classes.keys() == {'blue', 'green', 'red'}
    assert ImageFolder(pictures / 'val/red').labels is None


def test_flat_names_may_end_in_their_class(pictures):
    (pictures / 'val/red/0.png').rename(pictures / 'val/red/0_n02.png')
    for other in (pictures / 'val/red').glob('?.png'):
        other.unlink()
    assert ImageFolder(pictures / 'val/red', classes={'n01': 0, 'n02': 7}).labels == [7]
    assert ImageFolder(pictures / 'val/red').labels is None


def test_other_names_of_validation(pictures):
    shutil.move(pictures / 'val', pictures / 'Test')
    assert len(ImageFolder(pictures, 'val')) == 12
    with pytest.raises(ValueError, match="no split 'extra', only test, train"):
        ImageFolder(pictures, 'extra')


def test_hidden_files_are_no_images(pictures):
    (pictures / 'val/red/.cache.png').write_text('x')
    (pictures / '__MACOSX').mkdir()
    (pictures / '__MACOSX/a.png').write_text('x')
    assert len(ImageFolder(pictures, 'val')) == 12


def test_some_are_the_same_ones_each_time(pictures):
    every = ImageFolder(pictures)
    some = every.some(5, seed=1)
    assert len(some) == 5 and some.names == every.some(5, seed=1).names
    assert some.names != every.some(5, seed=2).names
    assert [every.names.index(n) for n in some.names] == sorted(map(every.names.index, some.names))
    assert len(every.some(1000)) == len(every) == 36
    assert some.open(0).tobytes() == every.open(every.names.index(some.names[0])).tobytes()


def test_what_is_wrong_is_said(pictures, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.zip').write_text('x')
    with pytest.raises(FileNotFoundError, match='no folder or zip'):
        ImageFolder(tmp_path / 'none')
    with pytest.raises(ValueError, match='no images'):
        ImageFolder(tmp_path / 'empty')
    with pytest.raises(ValueError, match='neither a folder nor a zip'):
        ImageFolder(tmp_path / 'text.zip')
    with pytest.raises(ValueError, match="class 'red' that has no index"):
        ImageFolder(pictures, classes={'blue': 0, 'green': 1})
    (pictures / 'val/blue/0.png').write_bytes(b'broken')
    with pytest.raises(ValueError, match=r'cannot read val/blue/0\.png.*prepare_folder'):
        ImageFolder(pictures, 'val').open(0)


def test_labels(tmp_path):
    assert read_labels(None) is None
    path = tmp_path / 'labels.json'
    path.write_text('{"a": 3}')
    assert read_labels(path) == {'a': 3}
    for text, said in (('[1]', 'must map'), ('{"a": -1}', 'must map'), ('{', 'not JSON')):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_labels(path)


def test_imagenet_by_wordnet_id():
    pytest.importorskip('timm')
    labels = read_labels('imagenet-1k')
    assert (len(labels), labels['n01440764'], labels['n15075141']) == (1000, 0, 999)
