#!/usr/bin/env python3
"""Time one model against another in one run: inference and training step, eager, on this machine.

Both models take turns call by call, so a machine that slows down slows both. Each is measured in
both memory formats; the ratio compares like with like, and the last column the best of each.
``benchmark.py family`` does that for V1, V2 and V3 against timm's own, ``benchmark.py forms`` for
all forms of ours that gp.optimize knows against timm's eager one, and ``benchmark.py bf16`` the
same in bfloat16, for GPUs above all; ``benchmark.py convert`` says what converting ResNet-50 costs;
``benchmark.py grid MODEL [MODEL ...]`` times any models by any backends. There a model is
``timm:NAME``, a config and so on, and ``MODEL@2`` (a ratio) or ``MODEL@PLAN.json`` its conversion.
"""

import functools
import json
from pathlib import Path

import torch
from _compare import FAMILY, compare_all
from _conversion_costs import conversion_costs
from _forms_table import forms_table
from _grid import BACKENDS, run_grid
from _modes import MODES

from ghost_plugin.cli.errors import tool
from ghost_plugin.cli.options import Parser, device, target, whole
from ghost_plugin.utils.atomic_io import atomic_write

JOBS = {
    'forms': lambda args, keep: forms_table(args, FAMILY, torch.float32, keep),
    'bf16': lambda args, keep: forms_table(args, FAMILY, torch.bfloat16, keep),
    'convert': lambda args, keep: keep(conversion_costs('resnet50', args.side)),
}


def _write(path: Path | None, figures: list[dict]) -> None:
    if path:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(figures, indent=1, default=str))


@tool
def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('models', nargs='*', default=['ghostnet_plugin', 'ghostnet_100'],
        help='two timm names, family, forms, bf16, convert, grid MODEL ...')  # fmt: skip
    add('--modes', nargs='+', choices=list(MODES), default=list(MODES))
    add('--batch', nargs='+', type=whole, default=[1, 16], help='images per call')
    add('--side', type=whole, default=224, help='of the images, pixels')
    add('--rounds', type=whole, default=30, help='timed calls or turns of each')
    add('--warmup', type=int, default=5, help='untimed calls before that')
    add('--threads', type=whole, default=torch.get_num_threads())
    add('--backends', nargs='+', default=BACKENDS, help='of grid; %(default)s')
    add('--cores', nargs='+', type=whole, help='of grid: numbers of threads; or --threads')
    add('--picture', type=target, metavar='PNG', help='of grid')
    add('--top1', type=Path, metavar='JSON', help='of grid: per cent by model, for the picture')
    add('--device', help='cuda where there is one, else cpu')
    add('--json', type=target, help='file for all figures')
    args = parser.parse_args()
    args.device = device(args.device)
    torch.set_num_threads(args.threads)
    args.cores = args.cores or [args.threads]
    keep = functools.partial(_write, args.json)
    if args.models[0] == 'grid':
        run_grid(args, keep)
    else:
        JOBS.get(' '.join(args.models), compare_all)(args, keep)


if __name__ == '__main__':
    main()
