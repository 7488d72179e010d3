# MMPose's runtime without its schedule; readable where the package is not installed.
_base_ = './runtime_segmentation.py'
default_scope = 'mmpose'
visualizer = dict(type='PoseLocalVisualizer')
