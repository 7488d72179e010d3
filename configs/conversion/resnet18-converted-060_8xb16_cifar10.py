# Ours: MMPretrain's ResNet-18 for CIFAR-10 at 60 % of its multiply-adds; load_from takes the
# checkpoint of the dense network
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(
    _delete_=True,
    type='ghost_plugin.Converted',
    model={{_base_.model}},
    plan=dict(macs=0.6),
    size=32,
)
optim_wrapper = dict(optimizer=dict(lr=0.02))
