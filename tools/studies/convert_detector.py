#!/usr/bin/env python3
"""RetinaNet with ResNet-18 on digits: trained, converted to 60 %, distilled for an epoch."""

import argparse
import json
from pathlib import Path

from _results import record
from _tasks import TOOLS, Task, run, test, train

from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.terminal import show, table

DENSE = Path('configs/conversion/retinanet_r18_fpn_digits.py')
DATA = Path('data/digits')
SHARE = 0.6  # of the multiply-adds
# The teacher is the network that was converted; the pyramid's maps are what both share.
DISTILLED = """_base_ = './converted.py'
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


def task(name: str, config: Path) -> Task:
    return Task(name, 'RetinaNet, ResNet-18', config, 160, 'coco/bbox_mAP', 'AP {:.3f}')


def study(out: Path) -> dict[str, dict]:
    """AP and costs: the original, converted, and distilled."""
    if not DATA.is_dir():
        run(out / 'data.log', TOOLS / 'data/make_digits.py', DATA)
    found = {'original': train(task('original', DENSE), out / 'original')}
    teacher = Path(found['original']['checkpoint']).resolve()
    config = out / 'converted.py'
    if not config.is_file():
        run(out / 'convert.log', TOOLS / 'convert.py', 'config', DENSE, '-o', config,
            '--macs', SHARE, '--checkpoint', teacher, '--data', DATA / 'detection',
            '--size', 160)  # fmt: skip
    converted = task('converted', config)
    found['converted'] = test(converted, config.with_suffix('.pth'), out / 'converted')
    distilled = out / 'distilled.py'
    distilled.write_text(DISTILLED.format(teacher=str(teacher)))
    found['distilled'] = train(task('distilled', distilled), out / 'distilled')
    return found


def cells(name: str, row: dict) -> list[str]:
    costs = [f'{row[key] / 1e6:.3f}' for key in ('params', 'macs')]
    seconds = row.get('seconds')
    return [name, f'{row["metric"]:.3f}', *costs, '' if seconds is None else f'{seconds:.0f}']


@tool
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/convert_detector'))
    parser.add_argument('--record', action='store_true', help='store in results.json')
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    found = study(out)
    (out / 'result.json').write_text(json.dumps(found, indent=1))
    head = ['Model', 'AP', 'Params (M)', 'MACs (M) at 160 px', 'Training (s)']
    show(table(head, [cells(name, row) for name, row in found.items()]))
    if args.record:
        rows = [{'model': name, **row} for name, row in found.items()]
        record('convert_detector', rows, 'python tools/studies/convert_detector.py --record')


if __name__ == '__main__':
    main()
