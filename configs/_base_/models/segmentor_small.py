# The head of semantic FPN straight on the backbone: it sums all levels; for 64 x 64 pixels.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5] * 3,
        std=[127.5] * 3,
        bgr_to_rgb=True,
        size=(64, 64),
        seg_pad_val=255,
    ),
    decode_head=dict(
        type='FPNHead',
        feature_strides=(2, 4, 8, 16),
        in_index=(0, 1, 2, 3),
        channels=32,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    ),
    # Most pixels are paper. A loss on the deepest level that counts it less makes the backbone
    # learn the digits sooner.
    auxiliary_head=dict(
        type='FCNHead',
        in_index=3,
        num_convs=0,
        concat_input=False,
        num_classes=11,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.1] + [1.0] * 10),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
