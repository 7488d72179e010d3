# TensorFlow's RMSprop 0.064 for 1,024 images, x 0.973 every 2.4 epochs, 450 epochs, EMA
# Source: the command in ghostnetv2_pytorch/README.md of huawei-noah/Efficient-AI-Backbones; its
# noise on the learning rate between 42 and 90 % of the epochs has no counterpart in MMEngine, its
# mixed precision is the tool's --amp.
max_epochs = 450
epoch = 1251  # steps of 1,024 images
optim_wrapper = dict(
    optimizer=dict(
        type='timm.optim.RMSpropTF', lr=0.064, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=1e-5
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / 0.064, by_epoch=False, end=3 * epoch),
    dict(type='StepLR', step_size=int(2.4 * epoch), gamma=0.973, by_epoch=False),
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)  # 8 GPUs x 128 images
