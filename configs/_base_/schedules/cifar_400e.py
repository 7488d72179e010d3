# SGD 0.1, a tenth at epochs 200, 300 and 375 of 400, weight decay 1e-4
# Source: the GhostNet author in github.com/iamhankai/ghostnet.pytorch issue 7
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[200, 300, 375], gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=400, val_interval=5)
val_cfg = dict()
test_cfg = dict()
