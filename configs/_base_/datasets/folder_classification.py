# Images in one folder per class and split, as tools/data/prepare_folder.py writes them.
_base_ = './loaders.py'
data_root = 'data/digits/classification'
num_classes = 10
size = 64  # pixels
batch_size = 64
data_preprocessor = dict(num_classes=num_classes, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(size, size))]

train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=[
            *load,
            dict(type='RandomCrop', crop_size=size, padding=size // 8),
            dict(type='Rotate', angle=10.0, prob=0.5),
            dict(type='Shear', magnitude=0.15, prob=0.5, random_negative_prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        type='CustomDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=[*load, dict(type='PackInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
