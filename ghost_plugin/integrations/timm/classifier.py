"""The methods that timm expects of a classifier, for any backbone of this package."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...specs import FINAL_LEVEL, check_out_indices, out_strides
from ...utils import optional
from ...weights import drop_counters, load_weights

optional.require('timm')

from timm.layers import SelectAdaptivePool2d, get_act_layer, get_norm_layer


def chosen_levels(indices: int | Sequence[int] | None) -> list[int]:
    """Levels 0..4 from timm's notations: None for all, n for the last n, negative from the end."""
    every = list(range(FINAL_LEVEL))
    if indices is None:
        return every
    if isinstance(indices, int):
        if not 1 <= indices <= FINAL_LEVEL:
            raise ValueError(f'the last n levels: n must be within 1..{FINAL_LEVEL}, got {indices}')
        return every[-indices:]
    levels = sorted({i + FINAL_LEVEL if -FINAL_LEVEL <= i < 0 else i for i in indices})
    if not levels or levels[-1] >= FINAL_LEVEL:
        raise ValueError(f'levels must be within 0..{FINAL_LEVEL - 1}, got {indices!r}')
    return list(check_out_indices(levels))


class TimmClassifierMixin:
    """Mixed in front of a backbone, makes it a classifier with timm's methods.

    A subclass defines how timm finds its parts: ``level_name``, ``stem``, ``block_patterns`` and
    ``classifier_name``.

    Args:
        num_classes: Number of outputs; 0 returns the features in front of the classifier.
        in_chans: Channels of the image.
        global_pool: timm's pooling name; ``''`` keeps height and width.
        drop_rate: Dropout in front of the classifier, training only.
        device, dtype: Device and type of all parameters.
        kwargs: As the backbone; ``norm_layer`` and ``act_layer`` may be names.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes)
    """

    stem: tuple[str, str]
    block_patterns: tuple[str, str]  # regular expressions: stages, blocks
    classifier_name = 'classifier'

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.2,
        norm_layer: str | Callable[[int], nn.Module] = nn.BatchNorm2d,
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            in_channels=in_chans,
            out_indices=(self.deepest,),
            norm_layer=get_norm_layer(norm_layer),
            act_layer=get_act_layer(act_layer),
            **kwargs,
        )
        strides = {k: kwargs[k] for k in ('output_stride', 'stem_stride') if k in kwargs}
        reductions = out_strides(self.family, range(FINAL_LEVEL), **strides)
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.num_features = self.level_channels[-1]
        self.feature_info = [
            {
                'num_chs': self.level_channels[level],
                'reduction': reduction,
                'module': self.level_name(level),
            }
            for level, reduction in enumerate(reductions)
        ]
        self._add_head()
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    def _add_head(self) -> None:
        """Add the layers between pooling and classifier; none here."""
        self.head_hidden_size = self.num_features
        self.conv_head = self.act2 = nn.Identity()

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str) -> None:
        """Load a file that timm leaves to the model (``custom_load``, ``.npz``)."""
        load_weights(self, checkpoint_path)

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any
    ) -> None:
        drop_counters(state_dict)  # timm's checkpoint_path= loads strictly
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_chans, H, W) -> (N, num_features, ceil(H / 32), ceil(W / 32))"""
        x, _ = self.trunk(x, self.taps, self.taps[-1] + 1)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pooling and classifier.

        Args:
            x: (N, num_features, H / 32, W / 32).
            pre_logits: Return the features in front of the classifier.
        """
        x = self.flatten(self.act2(self.conv_head(self.global_pool(x))))
        x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.classify(x)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """(N, features) -> (N, num_classes)"""
        return self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features at chosen levels, timm's signature.

        Args:
            x: Image batch.
            indices: Levels 0..4 (negative from the end), the last n for an int, None for all.
            norm: Ignored, there is no norm behind a level.
            stop_early: Do not run the stages behind the deepest level.
            output_fmt: ``'NCHW'``.
            intermediates_only: Return the list alone, without the final features.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        taps = [self.level_taps[level] for level in chosen_levels(indices)]
        depth = (max(taps) if stop_early else self.taps[-1]) + 1
        x, features = self.trunk(x, taps, depth)
        return features if intermediates_only else (x, features)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages that the features at ``indices`` do not need.

        Args:
            indices: As :meth:`forward_intermediates`.
            prune_norm, prune_head: Ignored; the head is always dropped.

        Returns:
            The levels, counted from 0.
        """
        levels = chosen_levels(indices)
        self.truncate_after(levels[-1])
        self.taps = [self.level_taps[levels[-1]]]
        self.num_features = self.head_hidden_size = self.level_channels[levels[-1]]
        self.conv_head = self.act2 = nn.Identity().train(self.training)
        self.reset_classifier(0, '')
        return levels

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return getattr(self, self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier and, if given, the pooling.

        Args:
            num_classes: Number of classes, 0 for none.
            global_pool: timm's pooling name, None keeps it.

        Raises:
            ValueError: The pooling changes the number of channels.
        """
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        pool = SelectAdaptivePool2d(pool_type=global_pool)
        if pool.feat_mult() != 1:
            raise ValueError(
                "global_pool must keep the number of channels ('avg', 'max', 'avgmax', 'fast', "
                f"...; '' for none), got {global_pool!r}"
            )
        self.num_classes, self.global_pool = num_classes, pool
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        classifier = nn.Identity()
        if num_classes > 0:
            classifier = nn.Linear(self.head_hidden_size, num_classes)
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)
            classifier.to(self.get_submodule(self.stem[0]).weight)
        setattr(self, self.classifier_name, classifier)
        for part in (self.global_pool, self.flatten, classifier):
            part.train(self.training)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in backward instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise learning rates."""
        stages, blocks = self.block_patterns
        groups = [(stages if coarse else blocks, None), (r'^conv_head', (99999,))]
        return {'stem': rf'^(?:{"|".join(self.stem)})\.', 'blocks': groups}
