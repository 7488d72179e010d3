# Data loaders for a small machine.
workers = dict(num_workers=1, persistent_workers=True)
train_dataloader = dict(**workers, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(**workers, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
