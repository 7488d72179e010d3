# Images of 160 x 160 made by tools/data/make_digits.py; digits must not be flipped.
_base_ = './loaders.py'
data_root = 'data/digits/detection/'
metainfo = dict(classes=tuple('0123456789'))
batch = dict(batch_size=8)

load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=(160, 160), keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)

coco = dict(type='CocoDataset', data_root=data_root, metainfo=metainfo)
train_set = dict(
    ann_file='train.json',
    data_prefix=dict(img='train/'),
    filter_cfg=dict(filter_empty_gt=True),
    pipeline=[*load, resize, pack],
    **coco,
)
val_set = dict(
    ann_file='val.json',
    data_prefix=dict(img='val/'),
    test_mode=True,
    pipeline=[load[0], resize, load[1], pack],
    **coco,
)
train_dataloader = dict(dataset=train_set, **batch)
val_dataloader = test_dataloader = dict(dataset=val_set, **batch)
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = val_evaluator
