"""The data tools as a user runs them."""

import importlib
import io
import json
import os
import shutil
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn')


def run(tool, *args):
    """Run a script in this process; like a finished process."""
    main = importlib.import_module(tool.removesuffix('.py')).main
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, 'argv', [tool, *map(str, args)]),
        mock.patch.object(os, 'dup2'),  # the error stream is pytest's
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as leaving:
            status = leaving.code or 0
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def refused(done, said):
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert 'Traceback' not in done.stderr


def image(path, broken=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((60, 40), 50).convert('RGB').save(path)
    if broken:
        path.write_bytes(path.read_bytes()[:400])


def annotation(path, *boxes):
    path.parent.mkdir(parents=True, exist_ok=True)
    things = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>'
        f'<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>'
        for name, a, b, c, d in boxes
    )
    path.write_text(f'<annotation>{things}</annotation>')


@pytest.fixture
def voc(tmp_path):
    """One good pair, one with bad boxes, one broken image, one without, one broken XML."""
    base = tmp_path / 'voc/VOCdevkit'
    for name, broken in {'good': False, 'edge': False, 'broken': True, 'odd': False}.items():
        image(base / f'JPEGImages/{name}.jpg', broken)
    annotation(base / 'Annotations/good.xml', ('cat', 1, 1, 10, 20))
    annotation(base / 'Annotations/edge.xml', ('dog', 51, 31, 90, 90), ('dog', 100, 100, 120, 120))
    annotation(base / 'Annotations/broken.xml', ('dog', 1, 1, 5, 5))
    annotation(base / 'Annotations/gone.xml', ('dog', 1, 1, 5, 5))
    (base / 'Annotations/odd.xml').write_text('<annotation>')
    (base / 'ImageSets/Main').mkdir(parents=True)
    (base / 'ImageSets/Main/val.txt').write_text('edge\n')
    return tmp_path / 'voc'


def test_voc_is_mended_and_everything_is_said(voc, tmp_path):
    done = run('voc_to_coco.py', voc, tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    xmls = 'VOCdevkit/Annotations'
    for said in (
        f'clipped: {xmls}/edge.xml',
        f'dropped: {xmls}/edge.xml',
        'broken images, left out: VOCdevkit/JPEGImages/broken.jpg',
        f'without an image, left out: {xmls}/gone.xml',
        'without a usable annotation, left out: VOCdevkit/JPEGImages/odd.jpg',
        f'cannot be read, left out: {xmls}/odd.xml (no element',
        '1 train, 1 val',
    ):
        assert said in done.stdout, done.stdout
    train, val = (json.loads((tmp_path / f'out/{s}.json').read_text()) for s in ('train', 'val'))
    assert train['annotations'][0]['bbox'] == [0, 0, 10, 20]
    assert val['annotations'][0]['bbox'] == [50, 30, 10, 10]
    assert [c['name'] for c in val['categories']] == ['cat', 'dog']
    assert (tmp_path / 'out/val/edge.jpg').is_file()


def images_of(out, split):
    """Content of each image of a split by its name, and its class by its boxes."""
    coco = json.loads((out / f'{split}.json').read_text())
    kinds = {c['id']: c['name'] for c in coco['categories']}
    boxes = {a['image_id']: kinds[a['category_id']] for a in coco['annotations']}
    return {
        i['file_name']: ((out / split / i['file_name']).read_bytes(), boxes[i['id']])
        for i in coco['images']
    }


@pytest.mark.parametrize('images, xmls', [('', ''), ('images/', 'annotations/')])
def test_annotations_find_the_image_near_them(images, xmls, tmp_path):
    made = {}
    for split, kind in (('train', 'cat'), ('val', 'dog')):
        image(tmp_path / f'in/{split}/{images}1.JPG')
        annotation(tmp_path / f'in/{split}/{xmls}1.XML', (kind, 1, 1, 10, 20))
        made[split] = {'1.JPG': ((tmp_path / f'in/{split}/{images}1.JPG').read_bytes(), kind)}
    done = run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'out')
    assert done.returncode == 0, done.stderr
    assert {split: images_of(tmp_path / 'out', split) for split in made} == made


def test_images_of_one_name_in_a_split_are_all_kept(tmp_path):
    made = {}
    for name, folder, kind in (('1.jpg', 'a', 'cat'), ('1-2.jpg', 'b', 'dog')):
        image(tmp_path / f'in/{folder}/JPEGImages/1.jpg')
        annotation(tmp_path / f'in/{folder}/Annotations/1.xml', (kind, 1, 1, 10, 20))
        made[name] = ((tmp_path / f'in/{folder}/JPEGImages/1.jpg').read_bytes(), kind)
    # A list is about the folder that it lies in.
    for folder, split in (('a', 'train'), ('b', 'train'), ('c', 'val')):
        (tmp_path / f'in/{folder}/ImageSets/Main').mkdir(parents=True)
        (tmp_path / f'in/{folder}/ImageSets/Main/{split}.txt').write_text('1\n')
    done = run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'out')
    assert 'renamed: train/1-2.jpg' in done.stdout, done.stderr
    assert images_of(tmp_path / 'out', 'train') == made


def test_a_voc_folder_without_split_is_said(tmp_path):
    image(tmp_path / 'in/1.png')
    annotation(tmp_path / 'in/1.xml', ('cat', 1, 1, 10, 20))
    assert 'no images to validate' in run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'a').stdout
    (tmp_path / 'in').rename(tmp_path / 'val')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'val').rename(tmp_path / 'in/val')
    done = run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'b')
    assert '1 val' in done.stdout and 'to validate' not in done.stdout


def test_masks_are_no_images_and_what_fits_alike_is_refused(tmp_path):
    for name in ('JPEGImages/1.jpg', 'SegmentationClass/1.png'):
        image(tmp_path / 'in' / name)
    annotation(tmp_path / 'in/Annotations/1.xml', ('cat', 1, 1, 10, 20))
    said = 'Annotations/1.xml fits JPEGImages/1.jpg and SegmentationClass/1.png alike'
    refused(run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'out'), said)
    xml = tmp_path / 'in/Annotations/1.xml'
    told = '<annotation><filename>1.jpg</filename>'
    xml.write_text(xml.read_text().replace('<annotation>', told))
    done = run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'out')
    assert 'without a usable annotation, left out: SegmentationClass/1.png' in done.stdout, (
        done.stderr
    )
    assert list(images_of(tmp_path / 'out', 'train')) == ['1.jpg']
    shutil.copytree(xml.parent, tmp_path / 'in/old')
    said = 'JPEGImages/1.jpg fits Annotations/1.xml and old/1.xml alike'
    refused(run('voc_to_coco.py', tmp_path / 'in', tmp_path / 'out', '--force'), said)


@pytest.mark.parametrize(
    'part, other, said',
    [
        ('<name>cat</name>', '', 'object 2 has no name'),
        ('<xmin>3</xmin>', '', "object 2 has xmin ''"),
        ('<ymax>20', '<ymax>nan', "object 2 has ymax 'nan'"),
        ('<ymax>20', '<ymax>many', "object 2 has ymax 'many'"),
        ('<annotation>', '<!DOCTYPE x><annotation>', 'it declares entities'),
    ],
)
def test_what_an_annotation_lacks_is_said(voc, part, other, said, tmp_path):
    bad = voc / 'VOCdevkit/Annotations/odd.xml'
    annotation(bad, ('dog', 1, 1, 10, 20), ('cat', 3, 3, 10, 20))
    head, found, tail = bad.read_text().rpartition(part)
    bad.write_text(head + other + tail)
    done = run('voc_to_coco.py', voc, tmp_path / 'out')
    assert found and f'left out: VOCdevkit/Annotations/odd.xml ({said}' in done.stdout, done.stderr
    assert '1 train, 1 val' in done.stdout


def test_wrong_classes_are_refused(voc, tmp_path):
    def given(*classes):
        return run('voc_to_coco.py', voc, tmp_path / 'out', '--classes', *classes)

    refused(given('dgo'), 'no box is of --classes dgo; there are cat, dog')
    refused(given('cat', 'cat'), 'must be different')
    done = given('dog', 'cta', 'cat')
    assert done.returncode == 0 and 'in no image: cta; there are cat, dog' in done.stdout
    (voc / 'VOCdevkit/Annotations/good.xml').unlink()
    annotation(voc / 'VOCdevkit/Annotations/edge.xml', ('dog', 20, 20, 10, 10))
    refused(given('dog', '--force'), 'holds a usable box; 1 annotations that')


def test_what_is_there_is_kept_unless_forced(voc, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('x')
    refused(run('voc_to_coco.py', voc, out), '--force')
    assert (out / 'mine.txt').is_file()
    assert run('voc_to_coco.py', voc, out, '--force').returncode == 0


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'prepare_folder.py'])
@pytest.mark.parametrize(
    'source, out',
    [('in', 'in'), ('in/raw', 'in'), ('in/raw.zip', 'in'), ('in/raw', 'link'), ('in', 'in/raw/new'),
     ('in.partial', 'in')],
)  # fmt: skip
def test_a_source_is_never_replaced_nor_written_into(tool, source, out, tmp_path):
    image(tmp_path / 'in/raw/cat/1.jpg')
    annotation(tmp_path / 'in/raw/cat/1.xml', ('cat', 1, 1, 10, 20))
    shutil.copytree(tmp_path / 'in', tmp_path / 'in.partial')
    shutil.make_archive(tmp_path / 'in/raw', 'zip', tmp_path / 'in/raw')
    (tmp_path / 'link').symlink_to(tmp_path / 'in')
    before = sorted(tmp_path.rglob('*'))
    refused(run(tool, tmp_path / source, tmp_path / out, '--force'), 'give another output')
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_a_run_that_fails_leaves_what_was_there_and_nothing_else(error, tmp_path):
    from _files import atomic_folder

    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine.txt').write_text('x')
    with pytest.raises(error), atomic_folder(tmp_path / 'out', force=True) as out:
        (out / 'half.txt').write_text('x')
        raise error
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['mine.txt', 'out']


def test_an_output_behind_a_link_is_made_anew_there(voc, tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'disk/old.txt').write_text('x')
    (tmp_path / 'out').symlink_to(tmp_path / 'disk')
    assert run('voc_to_coco.py', voc, tmp_path / 'out', '--force').returncode == 0
    assert (tmp_path / 'out').is_symlink()
    assert (tmp_path / 'disk/train.json').is_file()
    assert not (tmp_path / 'disk/old.txt').exists()


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'prepare_folder.py'])
def test_bad_sources_are_refused(tool, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.zip').write_text('hello')
    with zipfile.ZipFile(tmp_path / 'evil.zip', 'w') as archive:
        archive.writestr('../evil.txt', 'x')
    out = tmp_path / 'out'
    refused(run(tool, tmp_path / 'none', out), 'no folder or zip')
    refused(run(tool, tmp_path / 'empty', out), 'no usable')
    refused(run(tool, tmp_path / 'text.zip', out), 'neither a folder nor a zip')
    refused(run(tool, tmp_path / 'evil.zip', out), 'points outside')
    assert list(tmp_path.glob('out*')) == []


@pytest.mark.parametrize(
    'prefix, counts', [('', '2 train, 1 val'), ('test/', '3 test'), ('Training/', '3 training')]
)
def test_class_folders(prefix, counts, tmp_path):
    for number in range(3):
        image(tmp_path / f'in/{prefix}cat/{number}.jpg', broken=False)
    image(tmp_path / f'in/{prefix}dog/bad.jpg', broken=True)
    done = run('prepare_folder.py', tmp_path / 'in', tmp_path / 'out', '--every', 3)
    assert f'left out: {prefix}dog/bad.jpg' in done.stdout, done.stderr
    assert '1 classes: cat' in done.stdout
    assert counts in done.stdout


def zipped(folder):
    return Path(shutil.make_archive(folder, 'zip', folder))


def test_images_of_one_name_are_all_kept(tmp_path):
    kept = set()
    for name in ('a/cat/1.png', 'a/dog/1.png', 'b/cat/1.png', 'c/cat/2.PNG'):
        image(tmp_path / 'in' / name)
        kept.add((tmp_path / 'in' / name).read_bytes())
    done = run('prepare_folder.py', tmp_path / 'in', tmp_path / 'out')
    made = [p for p in (tmp_path / 'out').rglob('*') if p.is_file()]
    assert {p.read_bytes() for p in made} == kept, done.stderr
    assert sorted(str(p.relative_to(tmp_path / 'out/train')) for p in made) == [
        'cat/1-2.png', 'cat/1.png', 'cat/2.PNG', 'dog/1.png'
    ]  # fmt: skip
    assert 'another has, renamed: cat/1-2.png' in done.stdout
    assert '4 train' in done.stdout


def test_a_folder_around_the_source_is_no_split(tmp_path):
    for number in range(4):
        image(tmp_path / f'test/cat/{number}.png')
    done = run('prepare_folder.py', tmp_path / 'test', tmp_path / 'out', '--every', 2)
    assert '2 train, 2 val' in done.stdout, done.stderr


@pytest.mark.parametrize('form', [Path, zipped])
@pytest.mark.parametrize(
    'names, said',
    [
        (['1.png', 'cat/2.png'], 'without a class folder: 1.png;'),
        (['train/cat/1.png', 'val/2.png'], 'without a class folder: val/2.png;'),
        (['train/cat/1.png', 'val/cat/1.png', 'extra/dog/1.png'], 'in none: extra/dog;'),
    ],
)
def test_images_without_class_or_split_are_refused_by_name(form, names, said, tmp_path):
    for name in names:
        image(tmp_path / 'in' / name)
    refused(run('prepare_folder.py', form(tmp_path / 'in'), tmp_path / 'out'), said)


def test_what_is_passed_over_is_said(tmp_path):
    image(tmp_path / 'in/cat/1.JPG')
    for name in ('cat/2.tif', 'LICENSE', '.hidden/3.png', '__MACOSX/cat/._1.JPG'):
        (tmp_path / 'in' / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / 'in' / name).write_text('x')
    (tmp_path / 'dogs').mkdir()
    (tmp_path / 'in/dog').symlink_to(tmp_path / 'dogs')
    done = run('prepare_folder.py', tmp_path / 'in', tmp_path / 'out')
    assert 'left out: LICENSE, cat/2.tif' in done.stdout, done.stderr
    assert 'not followed: dog' in done.stdout
    assert done.stdout.endswith('1 train\n')
    assert 'broken' not in done.stdout


def cut(content):
    return content.replace(content[60:80], b'?' * 20)


def locked(content):
    """The bit for a password set in the files' headers and in the list at the end."""
    for head in (b'PK\3\4\x14\0', b'PK\1\2\x14\3\x14\0'):
        assert head + b'\0' in content
        content = content.replace(head + b'\0', head + b'\1')
    return content


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'prepare_folder.py'])
@pytest.mark.parametrize('change', [cut, locked])
def test_damaged_and_locked_zips_are_refused(tool, change, tmp_path):
    image(tmp_path / 'in/cat/1.png')
    archive = zipped(tmp_path / 'in')
    archive.write_bytes(change(archive.read_bytes()))
    refused(run(tool, archive, tmp_path / 'out'), 'cannot be unpacked')


@pytest.mark.parametrize('tool', ['voc_to_coco.py', 'prepare_folder.py'])
def test_nothing_usable_is_refused_with_the_reason(tool, tmp_path):
    image(tmp_path / 'in/cat/1.png', broken=True)
    annotation(tmp_path / 'in/cat/1.xml', ('cat', 1, 1, 10, 20))
    refused(run(tool, tmp_path / 'in', tmp_path / 'out'), '1 broken images, left out: cat/1.png')


def test_blood_cells(shared, tmp_path):
    done = run('voc_to_coco.py', shared / 'data/bccd.zip', tmp_path / 'out')
    assert 'classes: Platelets, RBC, WBC' in done.stdout
    assert '205 train, 87 val' in done.stdout


def test_digits_of_both_splits_come_from_different_samples(tmp_path):
    done = run('make_digits.py', tmp_path / 'd', '--train', 3, '--val', 2)
    assert done.returncode == 0, done.stderr
    names = [
        {p.stem for p in (tmp_path / f'd/classification/{s}').rglob('*.png')}
        for s in ('train', 'val')
    ]
    assert [len(n) for n in names] == [1382, 346]
    assert max(names[0]) < min(names[1])
    coco = json.loads((tmp_path / 'd/detection/val.json').read_text())
    assert len(coco['images']) == 2
    assert [a['id'] for a in coco['annotations']] == list(range(1, len(coco['annotations']) + 1))
    for box in (a['bbox'] for a in coco['annotations']):
        assert box[0] >= 0 and box[1] >= 0 and box[0] + box[2] <= 160 and box[1] + box[3] <= 160
    refused(run('make_digits.py', tmp_path / 'e', '--train', 0), '--train 0')


def test_masks_of_digits_lie_on_their_ink(tmp_path):
    done = run('make_digits.py', tmp_path, '--train', 4, '--val', 2, '--force')
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'segmentation'
    images, masks = (sorted((folder / kind).rglob('*.*')) for kind in ('img_dir', 'ann_dir'))
    assert [path.parent.name for path in masks] == 4 * ['train'] + 2 * ['val']
    assert [path.stem for path in images] == [path.stem for path in masks]
    for image, mask in zip(images, masks, strict=True):
        grey = np.asarray(Image.open(image).convert('L'), 'float')
        labels = np.asarray(Image.open(mask))
        assert grey.shape == labels.shape == (64, 64)
        assert labels.max() <= 10 and 1 <= len(np.unique(labels[labels > 0])) <= 3
        assert abs(grey[labels > 0].mean() - grey[labels == 0].mean()) > 20


def test_key_points_of_digits_lie_within_their_boxes(tmp_path):
    done = run('make_digits.py', tmp_path, '--train', 4, '--val', 2, '--force')
    assert done.returncode == 0, done.stderr
    coco = json.loads((tmp_path / 'keypoints/train.json').read_text())
    assert [a['image_id'] for a in coco['annotations']] == [i['id'] for i in coco['images']]
    assert coco['categories'][3]['keypoints'] == ['top', 'bottom', 'left', 'right']
    for one in coco['annotations']:
        x, y, w, h = one['bbox']
        points = np.array(one['keypoints']).reshape(4, 3)
        assert (points[:, 2] == 2).all() and one['num_keypoints'] == 4
        assert x >= 0 and y >= 0 and x + w <= 64 and y + h <= 64
        assert (points[:, :2] >= [x, y]).all() and (points[:, :2] <= [x + w, y + h]).all()
        (_, top), (_, bottom), (left, _), (right, _) = points[:, :2]
        assert top < bottom and left < right


def test_ends_of_a_letter_t():
    tool = importlib.import_module('make_digits')
    ink = np.zeros((16, 16))
    ink[:2], ink[:, 7:9] = 1, 0.5
    made = tool.keypoints_of(tool.Digit(1, 20, 30, ink), np.random.default_rng(0))
    ends = np.array(made['keypoints']).reshape(4, 3)[:, :2] - [20, 30]
    assert ends.tolist() == [[7.5, 0.5], [7.5, 14.5], [0.5, 0.5], [14.5, 0.5]]
