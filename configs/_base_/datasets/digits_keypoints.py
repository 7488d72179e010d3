# Images of 64 x 64 with a digit each, made by tools/data/make_digits.py, and the ends of its ink.
_base_ = './loaders.py'
data_root = 'data/digits/keypoints/'
names = ('top', 'bottom', 'left', 'right')
metainfo = dict(
    dataset_name='digits',
    keypoint_info={i: dict(name=name, id=i) for i, name in enumerate(names)},
    skeleton_info={0: dict(link=names[:2], id=0), 1: dict(link=names[2:], id=1)},
    joint_weights=[1.0] * 4,
    sigmas=[0.05] * 4,
)
batch = dict(batch_size=32)
codec = dict(
    type='UDPHeatmap', input_size=(64, 64), heatmap_size=(16, 16), sigma=1, blur_kernel_size=5
)
load = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale')]
change = dict(type='RandomBBoxTransform', scale_factor=(0.8, 1.2), rotate_prob=0.0)
crop = dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True)
target, pack = dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')

common = dict(type='BaseCocoStyleDataset', data_root=data_root, metainfo=metainfo)
train_set = dict(
    ann_file='train.json',
    data_prefix=dict(img='train/'),
    pipeline=[*load, change, crop, target, pack],
    **common,
)
val_set = dict(
    ann_file='val.json',
    data_prefix=dict(img='val/'),
    test_mode=True,
    pipeline=[*load, crop, pack],
    **common,
)
train_dataloader = dict(dataset=train_set, **batch)
val_dataloader = test_dataloader = dict(dataset=val_set, **batch)
# Distances in units of the longer side of the box.
val_evaluator = test_evaluator = [
    dict(type='PCKAccuracy', thr=0.05),
    dict(type='PCKAccuracy', thr=0.1, prefix='within_0.1'),
]
