# MMPose's top-down heatmaps with a small head, for crops of 64 x 64 pixels.
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True
    ),
    head=dict(
        type='HeatmapHead',
        out_channels=4,
        deconv_out_channels=(32,),
        deconv_kernel_sizes=(4,),
    ),
    test_cfg=dict(flip_test=False),
)
