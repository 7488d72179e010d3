# Ours: CIFAR-10 at 64 px from a zip or folder; first: tools/data/prepare_folder.py ZIP data/cifar10
_base_ = './ghostnet-050_digits.py'
model = dict(backbone=dict(width=1.0), head=dict(in_channels=960))
flip = dict(type='RandomFlip', prob=0.5)
crop = dict(type='RandomCrop', crop_size=64, padding=8)
load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64))]
root = dict(data_root='data/cifar10')
train_dataloader = dict(
    batch_size=128, dataset=dict(**root, pipeline=[*load, crop, flip, dict(type='PackInputs')])
)
val_dataloader = dict(dataset=dict(**root, data_prefix='test'))
test_dataloader = val_dataloader
