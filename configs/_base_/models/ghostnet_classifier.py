# The published classifier: pooling, then 1280 hidden features, then classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ghost_plugin.GhostNet', width=1.0, out_indices=(5,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        in_channels=960,
        mid_channels=[1280],
        dropout_rate=0.2,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
