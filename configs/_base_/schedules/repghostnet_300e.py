# SGD 0.6 for 1,024 images, 5 epochs of warm-up, cosine, 300 epochs, weight decay 1e-5, EMA
# Source: train.sh of github.com/ChengpengChen/RepGhost
max_epochs = 300
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.6, momentum=0.9, weight_decay=1e-5, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
warmup = dict(type='LinearLR', by_epoch=True, end=5, convert_to_iter_based=True)
cosine = dict(type='CosineAnnealingLR', T_max=max_epochs - 5, by_epoch=True, eta_min=1e-5)
param_scheduler = [
    dict(start_factor=1e-4 / 0.6, **warmup),
    dict(begin=5, end=max_epochs, **cosine),
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)  # 8 GPUs x 128 images
