"""Plots of a run: detections beside ground truth, loss and metric over time."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils import optional
from .runner_setup import build_model, default_scope_of, read_scalars

optional.require('mmengine', 'matplotlib')

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

Boxes = Sequence[tuple[Sequence[float], str]]  # ((x1, y1, x2, y2) in pixels, text)


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
    figure, axes = plt.subplots(2, num_images, figsize=(2.2 * num_images, 4.8), squeeze=False)
    for column, index in enumerate(np.linspace(0, len(data) - 1, num_images).astype(int)):
        sample = data[int(index)]
        found = model.test_step(pseudo_collate([sample]))[0]
        image = plt.imread(sample['data_samples'].img_path)
        truth = [
            (box['bbox'], names[box['bbox_label']])
            for box in data.get_data_info(int(index))['instances']
        ]
        detections = [
            (box, f'{names[int(label)]} {value:.2f}')
            for box, label, value in zip(
                found.pred_instances.bboxes.tolist(),
                found.pred_instances.labels.tolist(),
                found.pred_instances.scores.tolist(),
                strict=True,
            )
            if value >= score
        ]
        _draw(axes[0][column], image, truth, 'lime')
        _draw(axes[1][column], image, detections, 'orange')
    axes[0][0].set_title('ground truth', loc='left')
    axes[1][0].set_title(f'detections with a score of at least {score:g}', loc='left')
    _save(figure, out)


def _draw(axis: plt.Axes, image: np.ndarray, boxes: Boxes, colour: str) -> None:
    axis.imshow(image)
    axis.axis('off')
    for (left, top, right, bottom), text in boxes:
        corner, size = (left, top), (right - left, bottom - top)
        axis.add_patch(plt.Rectangle(corner, *size, fill=False, color=colour, linewidth=1.2))
        axis.text(left, top - 2, text, color=colour, fontsize=7, weight='bold')


def draw_curves(runs: dict[str, tuple[Path, str]], out: str | os.PathLike) -> None:
    """Plot loss and metric of runs over their epochs.

    Args:
        runs: Title of a run -> its work folder and the name of the metric.
        out: PNG to write.
    """
    figure, axes = plt.subplots(1, len(runs), figsize=(5.5 * len(runs), 3.2), squeeze=False)
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
    _save(figure, out)


def _save(figure: Any, out: str | os.PathLike) -> None:
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
