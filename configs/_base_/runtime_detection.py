_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(type='ghost_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=2),
)
custom_hooks = [dict(type='ghost_plugin.ProgressHook')]
