"""Plots of a run: detections beside ground truth, loss and metric over time."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils import optional
from .runner_setup import build_model, default_scope_of, read_scalars

optional.require('mmengine', 'matplotlib')

# Without pyplot, which would change the backend of a notebook.
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS


def draw_detections(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    num_images: int = 5,
    score: float = 0.5,
) -> None:
    """Plot ground truth (top row) and detections (bottom row) on test images.

    Args:
        config: Config of the detector.
        checkpoint: Its weights.
        out: PNG to write.
        num_images: Number of test images, evenly spread.
        score: Lowest score of a detection that is drawn.
    """
    model = build_model(config, checkpoint)
    cfg = Config.fromfile(config)
    with default_scope_of(cfg):
        data = DATASETS.build(cfg.test_dataloader.dataset)
    names = data.metainfo['classes']
    size = (2.2 * num_images, 4.8)
    figure = Figure(figsize=size, layout='tight')
    axes = figure.subplots(2, num_images, squeeze=False)
    for column, index in enumerate(np.linspace(0, len(data) - 1, num_images).astype(int).tolist()):
        sample, instances = data[index], data.get_data_info(index)['instances']
        image = imread(sample['data_samples'].img_path)
        _draw(axes[0][column], image, 'lime', [i['bbox'] for i in instances],
              [names[i['bbox_label']] for i in instances])  # fmt: skip
        found = model.test_step(pseudo_collate([sample]))[0].pred_instances
        found = found[found.scores >= score]
        pairs = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        _draw(axes[1][column], image, 'orange', found.bboxes.tolist(),
              [f'{names[label]} {value:.2f}' for label, value in pairs])  # fmt: skip
    axes[0][0].set_title('ground truth', loc='left')
    axes[1][0].set_title(f'detections with a score of at least {score:g}', loc='left')
    figure.savefig(out, dpi=110)


def _draw(
    axis: Axes,
    image: np.ndarray,
    colour: str,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
) -> None:
    """Draw an image and boxes (x1, y1, x2, y2), pixels, with their texts."""
    axis.imshow(image)
    axis.axis('off')
    for (left, top, right, bottom), text in zip(boxes, texts, strict=True):
        corner, size = (left, top), (right - left, bottom - top)
        axis.add_patch(Rectangle(corner, *size, fill=False, color=colour, linewidth=1.2))
        axis.text(left, top - 2, text, color=colour, fontsize=7, weight='bold')


def draw_curves(runs: dict[str, tuple[Path, str]], out: str | os.PathLike) -> None:
    """Plot loss and metric of runs over their epochs.

    Args:
        runs: Title of a run -> its work folder and the name of the metric.
        out: PNG to write.
    """
    figure = Figure(figsize=(5.5 * len(runs), 3.2), layout='tight')
    axes = figure.subplots(1, len(runs), squeeze=False)
    for axis, (title, (work_dir, metric)) in zip(axes[0], runs.items(), strict=True):
        logged = read_scalars(work_dir)
        loss = [(row['step'], row['loss']) for row in logged if 'loss' in row]
        scores = [(row['step'], row[metric]) for row in logged if metric in row]
        steps_per_epoch = max(s for s, _ in loss) / max(s for s, _ in scores)
        axis.plot([s / steps_per_epoch for s, _ in loss], [v for _, v in loss], color='tab:gray')
        axis.set(title=title, xlabel='epoch', ylabel='training loss')
        right = axis.twinx()
        right.plot(*zip(*scores, strict=True), 'o-', color='tab:blue')
        right.set_ylabel(metric, color='tab:blue')
    figure.savefig(out, dpi=110)
