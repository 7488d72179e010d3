"""Tables of measured figures, from ``tools/studies/results.json`` alone."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / 'studies'))

from _results import lite0_top1, load

from ghost_plugin.cli.terminal import table

Row = Mapping[str, Any]
Cell = Callable[[Row], str]


def value(key: str, form: str = '', unit: float = 1) -> Cell:
    """Make a cell of one value of a row, empty where the row lacks it.

    Args:
        key: Of the value.
        form: Format, such as ``'.2f'``.
        unit: The value is divided by it.
    """

    def cell(row: Row) -> str:
        found = row.get(key)
        if found is None:
            return ''
        return format(found / unit if unit != 1 else found, form)

    return cell


def difference(key: str) -> Cell:
    """Make a cell of a relative difference with one digit, or of the reason why there is none."""
    return lambda row: f'{row[key]:.0e}' if isinstance(row[key], float) else str(row[key])


RUNTIMES = (
    'PyTorch',
    'TorchScript',
    'AOTInductor',
    'ONNX Runtime',
    'OpenVINO',
    'ncnn',
    'LiteRT',
    'ExecuTorch',
)
MILLION = 1e6
PARAMS = value('params', '.3f', MILLION)
MACS = value('macs', '.2f', MILLION)


def all_values(rows: Sequence[Row]) -> Mapping[str, Cell]:
    """A column for each value, numbers with three digits."""
    forms = {key: '.3g' if isinstance(item, float) else '' for key, item in rows[0].items()}
    return {key: value(key, form) for key, form in forms.items()}


# Title and cell of each column, by study; other studies show all their values.
COLUMNS: dict[str, Mapping[str, Cell]] = {
    'convert_digits': {
        'Model': value('model'),
        'Top-1 (%)': value('top1', '.2f'),
        'Params (M)': PARAMS,
        'MACs (M)': MACS,
        'Latency (ms)': value('latency_ms', '.2f'),
        'Latency ratio': value('latency_ratio', '.2f'),
    },
    'quickstart': {
        'Task': value('task'),
        'Model': value('model'),
        'Params (M)': PARAMS,
        'MACs (M)': MACS,
        'Image (px)': value('size'),
        'Result': value('score'),
    },
    'cifar': {
        'Case': value('case'),
        'MACs (M)': value('macs_M', '.2f'),
        'Teacher (%)': value('teacher', '.2f'),
        'Converted (%)': value('converted', '.2f'),
        'Distilled (%)': value('distilled', '.2f'),
    },
    'convert_detector': {
        'Data': value('data'),
        'Model': value('model'),
        'AP': value('metric', '.3f'),
        'Params (M)': PARAMS,
        'MACs (M)': MACS,
    },
    'runtimes_backbones': {
        'Model': value('model'),
        'Backend': value('backend'),
        'Batch': value('batch'),
        'Milliseconds': value('median', '.2f'),
        'Times as fast': value('speedup', '.2f'),
    },
    'runtimes_converted': {
        'Network': value('model'),
        'Conversion': value('way'),
        'MACs': value('macs_share', '.0%'),
        'Runtime': value('backend'),
        'Milliseconds': value('median', '.2f'),
        'Times as fast': value('speedup', '.2f'),
    },
    'export_parity': {
        'Network': value('model'),
        **{
            name: difference(name)
            for name in (
                'ncnn',
                'LiteRT',
                'ExecuTorch',
                'ONNX opset 11',
                'ONNX opset 17',
                'OpenVINO',
                'torch.export',
            )
        },
    },
    'int8_runtimes': {
        'Runtime': value('runtime'),
        'File': value('file'),
        'Top-1 (%)': value('top1', '.1f'),
        'Divergence': value('divergence', '.3f'),
        'Size (MB)': value('size', '.1f', MILLION),
        'Left out because': value('note'),
    },
    'max_divergence': {
        'Network': value('network'),
        'Promise': value('promise'),
        'Planned': value('planned', '.3f'),
        'On unseen images': value('unseen', '.3f'),
        'MACs': value('macs_share', '.0%'),
        'Top-1 before (%)': value('top1_before', '.1f'),
        'Top-1 (%)': value('top1', '.1f'),
        'CPU time (s)': value('cpu_seconds'),
    },
    'accuracy_latency': {
        'Network': value('model'),
        'Top-1 (%)': value('top1', '.1f'),
        'MACs (M)': value('macs', '.0f', MILLION),
        'Threads': value('threads'),
        **{name: value(name, '.2f') for name in RUNTIMES},
    },
    'efficientnet_lite0': {
        'Draw': value('draw'),
        'MACs': value('macs_share', '.0%'),
        'Ghost convs start from': value('way'),
        'Top-1 (%)': value('top1', '.1f'),
        'Divergence': value('divergence', '.3f'),
        'CPU time (s)': value('cpu_seconds'),
    },
}


def provenance(name: str) -> str:
    """How, where and when a study was run."""
    study = load()[name]
    versions = ', '.join(f'{package} {number}' for package, number in study['versions'].items())
    lines = [
        '```bash',
        study['command'],
        '```',
        '',
        f'{study["date"]}, commit {study["commit"]}; {study["machine"]}; threads: '
        f'{study["threads"]}; load average {study["load"]}; {versions}.',
    ]
    return '\n'.join([*lines, study['note']] if study['note'] else lines)


def study_table(name: str) -> str:
    """The provenance of a study and its table."""
    rows = load()[name]['rows']
    columns = COLUMNS.get(name) or all_values(rows)
    cells = [[cell(row) for cell in columns.values()] for row in rows]
    return f'{provenance(name)}\n\n{table(list(columns), cells)}'


def one(study: str, **wanted: Any) -> Row:
    """The only row of a study with some values.

    Args:
        study: Its name.
        wanted: Values by name.
    """
    (row,) = [
        row
        for row in load()[study]['rows']
        if all(row.get(key) == item for key, item in wanted.items())
    ]
    return row


def readme() -> str:
    """The main results for README, each with a link to its section."""
    digits = {row['model']: row for row in load()['convert_digits']['rows']}
    tuned, dense = digits['fine-tuned'], digits['original']
    detector = one('quickstart', task='detection')
    ours = {'model': 'timm:ghostnet_plugin', 'backend': 'openvino', 'batch': 1}
    mobile = {'model': 'mobilenetv2_100', 'way': 'macs', 'backend': 'openvino'}
    rows = [
        ('ResNet-18, digits', '`latency=0.7`, fine-tuned',
         f'top-1 {tuned["top1"]:.1f} %, before {dense["top1"]:.1f} %; '
         f'{tuned["latency_ratio"]:.2f} of the time',
         'resnet-18-on-handwritten-digits-converted-and-fine-tuned'),
        ('RetinaNet, digits', 'GhostNet 0.5x backbone, from scratch',
         f'AP {detector["metric"]:.2f} with {detector["macs"] / 1e6:.0f} M multiply-adds',
         'quickstart-detector-and-classifier-on-digits'),
        *(_lite0(share) for share in (0.9, 0.8)),
        _gained('GhostNet 1.0x, CPU', 'OpenVINO, batch 1',
                one('runtimes_backbones', **ours),
                "timm's in eager mode", 'backbones-in-runtimes-cpu'),
        _gained('MobileNetV2, CPU', 'converted, `macs=0.6`, OpenVINO',
                one('runtimes_converted', **mobile),
                'the original', 'converted-networks-in-runtimes-cpu'),
    ]  # fmt: skip
    anchors = dict(zip(dict.fromkeys(anchor for *_, anchor in rows), 'abcdef', strict=False))
    cells = [[*row, f'[more][{anchors[anchor]}]']
             for *row, anchor in rows]  # fmt: skip
    page = 'tools/studies/RESULTS.md'
    links = [f'[{letter}]: {page}#{anchor}' for anchor, letter in anchors.items()]
    return '\n'.join([table(['Network', 'Setting', 'Result', 'Details'], cells), '', *links])


def _lite0(share: float) -> tuple[str, str, str, str]:
    before, after = lite0_top1(share)
    return (
        'EfficientNet-Lite0, ImageNet',
        f'`macs={share}`, unlabelled images, no training',
        f'top-1 {after:.1f} %, before {before:.1f} %',
        'efficientnet-lite0-with-imagenet-weights-converted',
    )


def _gained(name: str, setting: str, row: Row, other: str, anchor: str) -> tuple[str, ...]:
    gain = 'times as fast as' if row['speedup'] >= 1 else 'times as fast, so slower than'
    return name, setting, f'{row["speedup"]:.2f} {gain} {other}', anchor


def front(rows: Sequence[Row], runtime: str) -> list[Row]:
    """Networks of which no other is faster in a runtime and at least as accurate, fastest first.

    Args:
        rows: Networks with ``top1`` and milliseconds by runtime.
        runtime: Its name.
    """
    found: list[Row] = []
    timed = [row for row in rows if runtime in row]
    for row in sorted(timed, key=lambda row: (row[runtime], -row['top1'])):
        if not found or row['top1'] > found[-1]['top1']:
            found.append(row)
    return found


def fronts() -> str:
    """Front of accuracy and latency by runtime, and where Ghost networks lose."""
    rows = [row for row in load()['accuracy_latency']['rows'] if row['threads'] == 1]
    runtimes = [name for name in RUNTIMES if any(name in row for row in rows)]
    cells, kept = [], dict.fromkeys((row['model'] for row in rows if row['kind'] == 'ours'), 0)
    for runtime in runtimes:
        best = front(rows, runtime)
        lost = []
        for row in rows:
            if row['kind'] != 'ours' or runtime not in row:
                continue
            if row in best:
                kept[row['model']] += 1
                continue
            # The fastest network that is at least as accurate.
            other = next(one for one in best if one['top1'] >= row['top1'])
            ratio = row[runtime] / other[runtime]
            lost.append(f'{row["model"]} ({ratio:.1f} times the time of {other["model"]})')
        names = ', '.join(row['model'] for row in best)
        cells.append([runtime, names, ', '.join(lost) or 'none'])
    said = ', '.join(f'{name} in {count}' for name, count in kept.items())
    head = ['Runtime', 'On the front, fastest first', 'Ghost networks that lose']
    return (
        f'With one thread, of {len(runtimes)} runtimes, these Ghost networks are on the front of '
        f'accuracy and latency: {said}. Elsewhere another network is faster and at least as '
        f'accurate.\n\n{table(head, cells)}'
    )


def earlier() -> str:
    """Findings of earlier versions, a sentence each."""
    found = load()['earlier']['rows']
    return table(['Finding', 'Date', 'Commit'],
                 [[row['finding'], row['date'], row['commit']] for row in found])  # fmt: skip


BLOCKS: dict[str, Callable[[], str]] = {
    **{f'results-{name}': functools.partial(study_table, name) for name in load()},
    'results-fronts': fronts,
    'results-earlier': earlier,
    'results-readme': readme,
}
