# A Pascal VOC folder that tools/data/voc_to_coco.py turned into COCO's format.
_base_ = './digits_detection.py'
data_root = 'data/bccd/'
metainfo = dict(classes=('Platelets', 'RBC', 'WBC'))

load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=(320, 240), keep_ratio=True)
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
pack = dict(type='PackDetInputs', meta_keys=keys)
change = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]

coco = dict(data_root=data_root, metainfo=metainfo)
train_set = dict(
    type='CocoDataset',
    ann_file='train.json',
    data_prefix=dict(img='train/'),
    pipeline=[*load, resize, *change, pack],
    **coco,
)
train_dataloader = dict(
    dataset=dict(_delete_=True, type='RepeatDataset', times=2, dataset=train_set)
)
val_set = dict(pipeline=[load[0], resize, load[1], pack], **coco)
val_dataloader = test_dataloader = dict(dataset=val_set)
val_evaluator = test_evaluator = dict(ann_file=data_root + 'val.json')
