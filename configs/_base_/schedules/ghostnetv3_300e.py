# SGD 0.05 for 1,024 images, 3 epochs of warm-up, cosine to 1e-5, 300 epochs, EMA
# Source: the defaults of ghostnetv3_pytorch/train.py of huawei-noah/Efficient-AI-Backbones; its
# published 1.0x was trained longer (600 epochs) and with BEiT v2 as teacher.
max_epochs = 300
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=2e-5, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
warmup = dict(type='LinearLR', by_epoch=True, end=3, convert_to_iter_based=True)
cosine = dict(type='CosineAnnealingLR', T_max=max_epochs - 3, by_epoch=True, eta_min=1e-5)
param_scheduler = [
    dict(start_factor=0.002, **warmup),
    dict(begin=3, end=max_epochs, convert_to_iter_based=True, **cosine),
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)  # 8 GPUs x 128 images
