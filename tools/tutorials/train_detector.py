# %% [markdown]
# # Swap the backbone of a detector and train it
#
# A config of MMDetection gets a GhostNet in the place of its ResNet-50. Then it learns to find
# handwritten digits, on a CPU, in about a minute.
#
# You need a clone of the repository with OpenMMLab's packages and scikit-learn
# (`bash tools/setup_env.sh`). All files go into `work_dirs`.

# %%
import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from IPython.display import Image

import ghost_plugin as gp
from ghost_plugin.integrations.openmmlab.backbone_swap import load_config, swap_backbone
from ghost_plugin.integrations.openmmlab.plots import draw_curves, draw_detections


def quiet():
    """Hide what MMDetection and pycocotools print."""
    return contextlib.redirect_stdout(io.StringIO())


with quiet():
    from mmdet.apis import init_detector
    from mmengine.runner import Runner

root = Path(gp.__file__).parents[1]  # of the repository
out = Path('work_dirs/train_detector')
size = 96  # height and width of an image, pixels

# %% [markdown]
# ## Data
#
# A tool draws scikit-learn's digits into cluttered images, with boxes in COCO's format. Ten
# classes need longer training, so all digits become one class here.

# %%
maker = [sys.executable, root / 'tools/data/make_digits.py', out / 'digits']
subprocess.run([*maker, '--train', '480', '--val', '60', '--force'], check=True)
data = out / 'digits/detection'
for split in ('train', 'val'):
    file = data / f'{split}.json'
    coco = json.loads(file.read_text())
    coco['categories'] = [{'id': 0, 'name': 'digit'}]
    coco['annotations'] = [{**box, 'category_id': 0} for box in coco['annotations']]
    file.write_text(json.dumps(coco))
    print(f'{split}: {len(coco["images"])} images, {len(coco["annotations"])} digits')

# %% [markdown]
# ## Swap
#
# `swap_backbone` runs the new backbone once and returns what has to change in the config: the
# backbone, and the channels that the neck reads.

# %%
config = load_config('mmdet::atss/atss_r50_fpn_1x_coco.py')
with quiet():
    swap = swap_backbone(config, 'ghost_plugin.GhostNet', {'width': 0.5})
print(json.dumps(swap.change, indent=2))

# %% [markdown]
# The change is merged like any other change of a config. The cost of both detectors for one image,
# in multiply-adds:

# %%
original = init_detector(config.copy(), device='cpu')
config.merge_from_dict(swap.change)
swapped = init_detector(config.copy(), device='cpu')
image = torch.zeros(1, 3, size, size)
for name, model in {'ResNet-50': original, 'GhostNet 0.5x': swapped}.items():
    cost, body = gp.count(model, image), gp.count(model.backbone, image)
    print(
        f'{name}: {cost.params / 1e6:.1f} M parameters, {cost.macs / 1e6:.0f} M multiply-adds, '
        f'of these {body.macs / 1e6:.0f} M in the backbone'
    )

# %% [markdown]
# Now neck and head are what costs. A head of one conv with 64 channels on three levels is enough
# for small images, and norms in the neck help to train from scratch. This is ordinary MMDetection.

# %%
norm = dict(type='GN', num_groups=32)
config.model.neck.update(out_channels=64, num_outs=3, add_extra_convs=False, norm_cfg=norm)
config.model.bbox_head.update(in_channels=64, feat_channels=64, stacked_convs=1, num_classes=1)
config.model.bbox_head.anchor_generator.update(octave_base_scale=4, strides=[8, 16, 32])
print(f'{gp.count(init_detector(config.copy(), device="cpu"), image).macs / 1e6:.0f} M in all')

# %% [markdown]
# ## Train
#
# Data, optimizer and schedule come next. The pipeline has no flip, which would spoil digits.

# %%
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(size, size), keep_ratio=True),
    dict(type='PackDetInputs'),
]
for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
    config[f'{loader}_dataloader'].update(batch_size=8, num_workers=0, persistent_workers=False)
    config[f'{loader}_dataloader'].dataset.update(
        data_root=str(data),
        ann_file=f'{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=('digit',)),
        pipeline=pipeline,
    )
config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(data / 'val.json')

epochs = 4
config.optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=7e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
config.param_scheduler = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True),
]
config.train_cfg.max_epochs = epochs
config.default_hooks.logger.interval = 10
config.randomness = dict(seed=0)
config.work_dir, config.log_level = str(out / 'run'), 'ERROR'
config.dump(out / 'detector.py')

# %% [markdown]
# `ghost-plugin train work_dirs/train_detector/detector.py` does the same from the command line.

# %%
shutil.rmtree(out / 'run', ignore_errors=True)  # of an earlier execution
with quiet():
    runner = Runner.from_cfg(config)
    runner.train()

# %% [markdown]
# ## Evaluate
#
# The curve of the loss, and the precision after each epoch:

# %%
draw_curves({'ATSS with GhostNet': (out / 'run', 'coco/bbox_mAP')}, out / 'curves.png')
Image(out / 'curves.png')

# %%
with quiet():
    metrics = runner.test()
print(f'AP {metrics["coco/bbox_mAP"]:.2f}, AP50 {metrics["coco/bbox_mAP_50"]:.2f}')

# %% [markdown]
# AP50 counts a box as found where it overlaps the truth by half. AP also asks for exact borders,
# which need more training.

# %%
with quiet():
    weights = out / f'run/epoch_{epochs}.pth'
    draw_detections(out / 'detector.py', weights, out / 'detections.png', score=0.2)
Image(out / 'detections.png')

# %% [markdown]
# ## Next
#
# - `ghost-plugin swap mmdet::atss/atss_r50_fpn_1x_coco.py --width 0.5 -o mine.py --smoke-test`
#   writes the swapped config from the command line and tries a training step.
# - `python tools/data/voc_to_coco.py` makes a dataset of your own boxes.
# - `bash tools/quickstart.sh` trains a detector of all ten digits.
# - [Backbone swap](../../ghost_plugin/integrations/openmmlab/backbone_swap/README.md) explains
#   what is changed, and what is refused.
