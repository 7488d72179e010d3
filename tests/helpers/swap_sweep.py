"""Swap the configs of installed packages, train a step, predict; for the slow sweeps.

A config whose model is that of another, before or after the swap, is not run again. Where a swapped
model fails and the original fails too (an op without CPU code, a language model to download, a
class that is missing), the config does not count. ``GHOST_SWEEP=1/4`` takes every fourth folder
beginning with the second, so that parts can run side by side; ``GHOST_BOARD`` names a file that
keeps what happened, and a run that was cut off goes on where it was.
"""

import copy
import json
import os
import re
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone
from ghost_plugin.integrations.openmmlab.backbone_swap.config_tree import type_name
from ghost_plugin.integrations.openmmlab.backbone_swap.kinds import find_kind
from ghost_plugin.integrations.openmmlab.backbone_swap.smoke_test import build, train_and_predict

SECONDS = 150  # of one model
CLASSIFIER_SIDE, SIDES = 64, (128, 320)  # pixels; the second where the first is too small


def folders(*packages):
    """Folders of configs of packages."""
    return [
        folder
        for package in packages
        for folder in sorted((Path(package.__file__).parent / '.mim/configs').iterdir())
        if folder.is_dir() and folder.name != '_base_'
    ]


PART = re.fullmatch(r'(\d+)/(\d+)', os.environ.get('GHOST_SWEEP', ''))
KEPT = Path(os.environ.get('GHOST_BOARD', '/nowhere/board.jsonl'))
TRANSFORMERS = (
    'ViT|VisionTransformer|Former|Swin|DeiT|BEiT|EVA|XCiT|T2T|TNT|SVT|PCPVT|Conformer|'
    'MlpMixer|Vig|LoRA|MixMIM'
)  # and their like, which mix tokens and not pixels
SEEN: dict[str, str] = {}
BOARD: dict[str, dict] = {}


@contextmanager
def offline():
    """No downloads; what a run before this one found is read from the board."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HF_HUB_OFFLINE', '1')
        patch.setenv('TRANSFORMERS_OFFLINE', '1')
        if KEPT.is_file():
            for line in KEPT.read_text().splitlines():
                row = json.loads(line)
                BOARD[row['config']] = row
                SEEN.update(dict.fromkeys(row['keys'], row['config']))
        yield


def chosen(folders):
    """The part of the folders that GHOST_SWEEP asks for."""
    return folders[int(PART[1]) :: int(PART[2])] if PART else folders


def key_of(model):
    """A model without weights and looks, as text."""
    part = part_of(model)
    left = ('init_cfg', 'pretrained', 'data_preprocessor')
    return json.dumps({k: v for k, v in part.items() if k not in left}, sort_keys=True, default=str)


def part_of(model):
    """The part with the backbone, whether it can be swapped or not."""
    part = model or {}
    part = part if 'backbone' in part else part.get('detector', {})
    return part if isinstance(part.get('backbone'), dict) else None


def kind_of(part, scope):
    """The group of the scoreboard that a config belongs to."""
    try:
        kind = find_kind(part, scope).name
    except ValueError:
        return 'unknown kind'
    if kind in ('segmentor', 'pose estimator'):
        token = re.search(TRANSFORMERS, type_name(part['backbone']), re.IGNORECASE)
        return f'token {kind}' if token else kind
    if scope in ('mmrotate', 'mmyolo'):
        return {'mmrotate': 'rotated detector', 'mmyolo': 'YOLO'}[scope]
    if kind != 'classifier':
        return 'pyramid' if re.search('FP', type_name(part.get('neck'))) else 'other detector'
    if type_name(part) not in ('ImageClassifier', 'BaseReID'):
        return 'pretraining'
    tokens = re.search(TRANSFORMERS, type_name(part['backbone']), re.IGNORECASE)
    return 'token classifier' if tokens else 'classifier'


# What a model may have at most here; none of it is of the backbone or is read by another part.
LIGHT = {
    'fc_out_channels': 64,
    'max_per_img': 64,
    'nms_post': 64,
    'nms_pre': 64,
    'num_dn_queries': 8,
    'num_proposals': 20,
    'num_queries': 40,
}
LAYERS = 2  # of an encoder or decoder
REGIONS = 32  # that a sampler takes


def lightened(node, within=''):
    """Fewer regions, queries and layers, in place."""
    if isinstance(node, dict):
        for name, value in node.items():
            most = LIGHT.get(name)
            most = LAYERS if name == 'num_layers' and within.endswith('coder') else most
            most = REGIONS if name == 'num' and within == 'sampler' else most
            if most and isinstance(value, int):
                node[name] = min(value, most)
            else:
                lightened(value, name)
    elif isinstance(node, list | tuple):
        for item in node:
            lightened(item, within)


def run(cfg):
    """Build and exercise; the reason where that fails, at every size."""
    model, part = build(cfg)
    classifier = find_kind(part, cfg.get('default_scope')).name == 'classifier'
    exercise(model, part, (CLASSIFIER_SIDE,) if classifier else SIDES)


def exercise(model, part, sides=SIDES):
    """Train a step and predict at the first size that works; return it."""
    for side in sides:
        try:
            train_and_predict(model, part, side)
            return side
        except ValueError:
            if side == sides[-1]:
                raise


def merged(cfg, change):
    return Config(Config._merge_a_into_b(copy.deepcopy(change), cfg.to_dict()))


def outcome(cfg, part, keys):
    """State and reason of one config."""
    try:
        swap = swap_backbone(cfg, 'ghost_plugin.GhostNet', {'width': 0.5})
    except ValueError as error:
        assert '\n' not in str(error)
        keys.append(key_of({'backbone': {}, **{k: v for k, v in part.items() if k != 'backbone'}}))
        return ('same', SEEN[keys[-1]]) if keys[-1] in SEEN else ('refused', str(error))
    new = merged(cfg, swap.change)
    keys.append(key_of(new.model))
    if keys[-1] in SEEN:
        return 'same', SEEN[keys[-1]]
    try:
        lightened(new.model)
        run(new)
        return 'swapped', ' '.join(swap.remarks)
    except ValueError as error:
        reason = str(error)
    try:
        lightened(cfg.model)
        run(cfg)
    except ValueError as error:
        return 'not here', str(error)
    return 'failed', reason


def sweep(path, limited):
    name = str(path.relative_to(path.parents[len(path.parts) - path.parts.index('configs') - 2]))
    if name in BOARD:
        return
    try:
        cfg = load_config(path)
    except (ValueError, FileNotFoundError) as error:
        return keep(name, 'no config', 'unread', str(error), [])
    part = part_of(cfg.get('model'))
    if part is None:
        return keep(name, 'no backbone', 'unread', str(cfg.get('model', {}).get('type')), [])
    keys = [key_of(cfg.model)]
    if keys[0] in SEEN:
        return
    torch.manual_seed(0)
    kind, start = kind_of(part, cfg.get('default_scope')), time.monotonic()
    try:
        with limited(SECONDS):
            import_modules_from_strings(**cfg.get('custom_imports', {'imports': []}))
            state, reason = outcome(cfg, part, keys)
    except TimeoutError as error:
        state, reason = 'failed', str(error)
    keep(name, kind, state, reason, keys, round(time.monotonic() - start, 1))


def keep(name, kind, state, reason, keys, seconds=0.0):
    row = {'config': name, 'kind': kind, 'state': state, 'reason': reason[:300]}
    BOARD[name] = {**row, 'seconds': seconds, 'keys': keys}
    for key in keys:
        SEEN.setdefault(key, name)
    print(*row.values(), BOARD[name]['seconds'], flush=True)
    if KEPT.parent.is_dir():
        with KEPT.open('a') as file:
            file.write(json.dumps(BOARD[name]) + '\n')


def rate(*kinds):
    """Share of the distinct configs of these kinds that swap, train and predict, per cent."""
    states = Counter(row['state'] for row in BOARD.values() if row['kind'] in kinds)
    counted = states['swapped'] + states['refused'] + states['failed']
    print(f'\n{" + ".join(kinds)}: {dict(states)}')
    return 100 * states['swapped'] / counted if counted else 100.0


def print_failures():
    """The configs that do not swap, with the reasons."""
    print(*(f'{n}: {row["state"]}, {row["reason"]}' for n, row in BOARD.items()
            if row['state'] in ('refused', 'failed')), sep='\n')  # fmt: skip
