# Images of 64 x 64 and masks made by tools/data/make_digits.py; digits must not be flipped.
_base_ = './loaders.py'
data_root = 'data/digits/segmentation/'
metainfo = dict(classes=('paper', *'0123456789'))
batch = dict(batch_size=16)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
common = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo, pipeline=pipeline)
train_set = dict(data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'), **common)
val_set = dict(data_prefix=dict(img_path='img_dir/val', seg_map_path='ann_dir/val'), **common)
train_dataloader = dict(dataset=train_set, **batch)
val_dataloader = test_dataloader = dict(dataset=val_set, **batch)
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
