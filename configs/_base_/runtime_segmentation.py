# MMSegmentation's runtime, counted in epochs; readable where the package is not installed.
default_scope = 'mmseg'
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='ghost_plugin.AtomicCheckpointHook', interval=1, max_keep_ckpts=2),
)
custom_hooks = [dict(type='ghost_plugin.ProgressHook')]
randomness = dict(seed=0)
