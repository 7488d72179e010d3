# Recipe: GhostNetV3 (arXiv 2404.11202), the authors' script: its teacher, weights 1, temperature 1
_base_ = './ghostnetv3-100_8xb128-300e_in1k.py'
model = dict(
    _delete_=True,
    type='ghost_plugin.Distilled',
    student=_base_.model,
    teacher=dict(type='TimmClassifier', model_name='beitv2_large_patch16_224', pretrained=True),
    logits={'head.layers.1': 'model'},
)
