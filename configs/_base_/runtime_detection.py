_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10),
    # Two are kept, so that one is whole when the other is being written.
    checkpoint=dict(interval=1, max_keep_ckpts=2),
)
custom_hooks = [dict(type='ghost_plugin.ProgressHook')]
env_cfg = dict(dist_cfg=dict(backend='gloo'))
