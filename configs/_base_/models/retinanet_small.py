# MMDetection's RetinaNet with a small head for small images, with norms for training from scratch.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    neck=dict(out_channels=64, norm_cfg=norm_cfg),
    bbox_head=dict(
        stacked_convs=2,
        in_channels=64,
        feat_channels=64,
        num_classes=10,
        norm_cfg=norm_cfg,
        anchor_generator=dict(octave_base_scale=3),
    ),
)
