# ImageNet at 224: crops, flips, RandAugment rand-m9-mstd0.5, random erasing of a fifth.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'
mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
train_dataloader = dict(
    batch_size=128,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                total_level=10,
                magnitude_level=9,
                magnitude_std=0.5,
                hparams=dict(pad_val=[round(value) for value in mean], interpolation='bicubic'),
            ),
            dict(
                type='RandomErasing',
                erase_prob=0.2,
                mode='rand',
                min_area_ratio=0.02,
                max_area_ratio=1 / 3,
                fill_color=mean,
                fill_std=std,
            ),
            dict(type='PackInputs'),
        ]
    ),
)
val_dataloader = test_dataloader = dict(batch_size=128)
