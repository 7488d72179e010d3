# A Pascal VOC folder that tools/voc_to_coco.py turned into COCO's format.
data_root = 'data/bccd/'
classes = ('Platelets', 'RBC', 'WBC')
scale = (416, 320)  # pixels
batch_size = 8
metainfo = dict(classes=classes)

load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=scale, keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)
flip = dict(type='RandomFlip', prob=0.5)

train_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RepeatDataset',
        times=4,
        dataset=dict(
            type='CocoDataset',
            data_root=data_root,
            ann_file='train.json',
            data_prefix=dict(img='train/'),
            metainfo=metainfo,
            pipeline=[*load, resize, flip, dict(type='PhotoMetricDistortion'), pack],
        ),
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=[load[0], resize, load[1], pack],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'val.json', metric='bbox')
test_evaluator = val_evaluator
