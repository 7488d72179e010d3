# Ours: the same with the dense network as teacher; give its file as teacher_checkpoint, load_from
_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'

model = dict(
    _delete_=True,
    type='ghost_plugin.Distilled',
    student=dict(
        type='ghost_plugin.Converted', model={{_base_.model}}, plan=dict(macs=0.6), size=32
    ),
    teacher={{_base_.model}},
    logits=['head.fc'],
    temperature=4.0,
)
optim_wrapper = dict(optimizer=dict(lr=0.02))
