#!/usr/bin/env python3
"""RetinaNet with ResNet-18 on digits and blood cells: trained, converted, and distilled.

First, for the cells: python tools/data/voc_to_coco.py BCCD_ZIP data/bccd
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from _results import record
from _tasks import TOOLS, Task, run, test, train
from cells import BACKBONES, OTHER, OURS

from ghost_plugin.cli.errors import fail, tool
from ghost_plugin.cli.terminal import show, table

DIGITS, CELLS = Path('data/digits'), Path('data/bccd')
SHARES = (0.6, 0.5)  # of the multiply-adds
DISTILLED_SHARE = 0.6
# The teacher is the network that was converted; the pyramid's maps are what both share.
DISTILLED = """_base_ = {base!r}
model = dict(
    _delete_=True,
    type='ghost_plugin.Distilled',
    student={{{{_base_.model}}}},
    teacher={{{{_base_.model.model}}}},
    teacher_checkpoint={teacher!r},
    features=['neck'],
)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=1, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=1)
"""


@dataclass(frozen=True)
class Case:
    """A detector to convert.

    Attributes:
        config: The original's config, as text.
        images: Folder that calibrates, with one of the training images inside.
        size: Height and width of the images, pixels.
    """

    config: str
    images: Path
    size: int


CASES = {
    'digits': Case(
        f'_base_ = {str(TOOLS.parent / "configs/conversion/retinanet_r18_fpn_digits.py")!r}\n',
        DIGITS / 'detection',
        160,
    ),
    'cells': Case(
        f'_base_ = {str(OURS)!r}\n' + OTHER.format(*BACKBONES['ResNet-18'] or ()), CELLS, 320
    ),
}


def study(case: Case, out: Path) -> dict[str, dict]:
    """AP and costs: the original, converted, and distilled.

    Args:
        case: A detector.
        out: Folder of results; those that are there are kept.
    """
    out.mkdir(parents=True, exist_ok=True)

    def task(name: str, config: Path) -> Task:
        return Task(name, 'RetinaNet, ResNet-18', config, case.size, 'coco/bbox_mAP', 'AP {:.3f}')

    dense = out / 'dense.py'
    dense.write_text(case.config)
    found = {'original': train(task('original', dense), out / 'original')}
    teacher = Path(found['original']['checkpoint']).resolve()
    for share in SHARES:
        config = out / f'converted_{100 * share:.0f}.py'
        if not config.is_file():
            run(out / 'convert.log', TOOLS / 'convert.py', 'config', dense, '-o', config,
                '--macs', share, '--checkpoint', teacher, '--data', case.images,
                '--size', case.size)  # fmt: skip
        name = f'converted to {share:.0%}'
        found[name] = test(task(name, config), config.with_suffix('.pth'), out / config.stem)
    name, config = f'{DISTILLED_SHARE:.0%}, distilled', out / 'distilled.py'
    base = f'./converted_{100 * DISTILLED_SHARE:.0f}.py'
    config.write_text(DISTILLED.format(base=base, teacher=str(teacher)))
    found[name] = train(task(name, config), out / 'distilled')
    return found


def cells(data: str, name: str, row: dict) -> list[str]:
    """A line of the table.

    Args:
        data: Name of the images.
        name: Of the network.
        row: Its results.
    """
    costs = [f'{row[key] / 1e6:.3f}' for key in ('params', 'macs')]
    seconds = row.get('seconds')
    return [data, name, f'{row["metric"]:.3f}', *costs, '' if seconds is None else f'{seconds:.0f}']


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/convert_detector'))
    parser.add_argument('--only', choices=list(CASES), nargs='+', default=list(CASES))
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    out = args.out.resolve()
    if 'cells' in args.only and not CELLS.is_dir():
        fail(
            f'{CELLS} is not there; make it with python tools/data/voc_to_coco.py BCCD_ZIP {CELLS}'
        )
    if 'digits' in args.only and not DIGITS.is_dir():
        run(out / 'data.log', TOOLS / 'data/make_digits.py', DIGITS)
    found = {name: study(CASES[name], out / name) for name in args.only}
    (out / 'result.json').write_text(json.dumps(found, indent=1))
    rows = [(data, name, row) for data, own in found.items() for name, row in own.items()]
    head = ['Data', 'Model', 'AP', 'Params (M)', 'MACs (M)', 'Training (s)']
    show(table(head, [cells(*row) for row in rows]))
    if args.record:
        rows_kept = [{'data': data, 'model': name, **row} for data, name, row in rows]
        record('convert_detector', rows_kept, 'python tools/studies/convert_detector.py --record')


if __name__ == '__main__':
    main()
