# %% [markdown]
# # Convert your own timm network
#
# A small ResNet is trained on handwritten digits. Then its convs become Ghost convs that inherit
# its weights, and a short fine-tuning follows, with the original as teacher. On a CPU all of it
# takes about a minute.
#
# You need `pip install timm scikit-learn matplotlib` beside `ghost_plugin`. All files go into
# `work_dirs`.

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from IPython.display import Image
from sklearn.datasets import load_digits

import ghost_plugin as gp
from ghost_plugin.conversion import apply_plan

out = Path('work_dirs/convert_timm_model')
out.mkdir(parents=True, exist_ok=True)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A network of your own
#
# scikit-learn brings digits of 13 writers, one writer after the other. The last ones validate. A
# few images between are left out, so that no writer is in both parts.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
images = F.interpolate((images - 4.9) / 6.0, size=(64, 64), mode='bicubic')  # (N, 1, 64, 64)
labels = torch.tensor(digits.target)
train_images, train_labels = images[:1382], labels[:1382]
val_images, val_labels = images[1451:], labels[1451:]

model = timm.create_model('resnet10t', num_classes=10, in_chans=1, channels=(32, 64, 128, 256))
print(gp.count(model, train_images[:1]))

# %% [markdown]
# An ordinary training loop. With a teacher, `gp.Distiller` runs both networks and returns the
# student's logits and their distance from those of the teacher.


# %%
def train(model, epochs, lr, teacher=None):
    steps = len(train_images) // 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    distiller = gp.Distiller(model, teacher, temperature=4.0) if teacher else None
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train_images))[: 32 * steps].split(32):
            if distiller:
                _, loss = distiller(train_images[batch])
            else:
                loss = F.cross_entropy(model(train_images[batch]), train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model):
    """Per cent of the validation images."""
    return 100 * (model.eval()(val_images).argmax(1) == val_labels).float().mean().item()


train(model, epochs=4, lr=4e-3)
print(f'top-1 {accuracy(model):.1f} %')

# %% [markdown]
# ## Plan
#
# `gp.plan` decides for each conv. `macs=0.4` is a budget: at most 40 % of the multiply-adds. The
# calibration images need no labels. They show which convs the output depends on most.

# %%
calibration = list(train_images[:128].split(32))
plan = gp.plan(model, train_images[:1], macs=0.4, calibration=calibration)
print(plan.report())

# %% [markdown]
# `Ratio` is the number of output channels per channel that a conv really computes. Kept convs
# have a reason, which is explained below the table. A plan is data: read it, edit it, save it.
# Other budgets need no new measurement.

# %%
for macs in (0.8, 0.6, 0.4):
    other = plan.rebudget(macs=macs)
    convs = sum(layer.converts for layer in other.layers)
    print(f'{macs}: {other.totals["macs_after"] / 1e6:.1f} M multiply-adds, {convs} Ghost convs')

edited = plan.replace_layer('layer4.0.conv2', decision='keep')
print(f'with a conv kept: {edited.totals["macs_after"] / 1e6:.1f} M multiply-adds')
plan.save(out / 'plan.json')

# %% [markdown]
# ## Apply
#
# `plan.apply` returns a converted copy. `apply_plan` also returns the plan with the error of
# each layer. Without calibration images the Ghost convs are fitted to the kernels alone, which
# is not enough here.

# %%
blind = plan.apply(model)
result = apply_plan(plan, model, calibration=calibration)
converted, plan = result.model, result.plan
print(f'original                     {accuracy(model):.1f} %')
print(f'converted without images     {accuracy(blind):.1f} %')
print(f'converted with 128 images    {accuracy(converted):.1f} %')

# %% [markdown]
# The plan as a drawing: above the multiply-adds of each conv before and after, below the squared
# error of its output relative to the variance.

# %%
plan.draw(out / 'plan.png')
Image(out / 'plan.png')

# %% [markdown]
# ## What happened to the channels
#
# A Ghost conv computes its primary feature maps by a conv, and makes the others, the ghosts,
# from these by a depthwise filter each. `order` gives the computed channel of each output channel,
# so a ghost can be compared with the feature map of the original that it stands for.

# %%
name = 'conv1.6'  # the last conv of the stem
ghost_conv = converted.get_submodule(name)
print(ghost_conv)


def watch(network, batch):
    """Input and output of the conv."""
    seen = []
    conv = network.get_submodule(name)
    handle = conv.register_forward_hook(lambda conv, args, output: seen.extend((*args, output)))
    with torch.no_grad():
        network(batch)
    handle.remove()
    return seen


_, wanted = watch(model, val_images[:64])
x, found = watch(converted, val_images[:64])
with torch.no_grad():
    primary = ghost_conv.primary_conv(x)

# %% [markdown]
# The norm behind the conv absorbs a shift of a whole channel, so the error is that of the feature
# maps without their mean.


# %%
def centred(maps):
    return maps - maps.mean((0, 2, 3), keepdim=True)


wanted, found = centred(wanted), centred(found)
errors = (found - wanted).square().mean((0, 2, 3)) / wanted.square().mean((0, 2, 3))
ghosts = [c for c in range(len(errors)) if ghost_conv.order[c] >= ghost_conv.primary]
ghosts.sort(key=lambda channel: errors[channel])
print(f'{ghost_conv.primary} primary feature maps, {len(ghosts)} ghosts')

# %% [markdown]
# The ghosts with the least, the median and the largest error, for one image. Ghost, original and
# difference have the same grey scale. Where the error is small, the filter turns the primary
# feature map into what the original computed by a conv over all input channels. Where it is large,
# the fit has found no filter that helps, and the layers behind must do without this channel.

# %%
figure, axes = plt.subplots(3, 5, figsize=(10, 6.4), layout='constrained')
shown = int((val_labels == 5).nonzero()[0])
for row, channel in zip(axes, (ghosts[0], ghosts[len(ghosts) // 2], ghosts[-1]), strict=True):
    number = int(ghost_conv.order[channel]) - ghost_conv.primary
    source = number // ghost_conv.ghosts_per_group
    panels = {
        'image': val_images[shown, 0],
        f'primary {source}': primary[shown, source],
        f'its ghost {number}': found[shown, channel],
        f'original {channel}': wanted[shown, channel],
        f'difference, error {errors[channel]:.2f}': (found - wanted)[shown, channel],
    }
    limit = wanted[shown, channel].abs().max().item()
    for column, (axis, (title, feature_map)) in enumerate(zip(row, panels.items(), strict=True)):
        scale = {'vmin': -limit, 'vmax': limit} if column > 1 else {}
        axis.imshow(feature_map, cmap='gray', **scale)
        axis.set_title(title, fontsize=10)
        axis.axis('off')

# %% [markdown]
# ## Fine-tune with the original as teacher
#
# No labels are needed: the student learns the logits of the teacher.

# %%
tuned = copy.deepcopy(converted)
train(tuned, epochs=1, lr=2e-3, teacher=model)

print('| Network | Parameters (k) | Multiply-adds (M) | top-1 (%) |')
print('| --- | --- | --- | --- |')
for title, net in {'original': model, 'converted': converted, 'fine-tuned': tuned}.items():
    cost = gp.count(net, val_images[:1])
    figures = f'{cost.params / 1e3:.0f} | {cost.macs / 1e6:.1f} | {accuracy(net):.1f}'
    print(f'| {title} | {figures} |')

# %% [markdown]
# ## Keep it
#
# A plan and a state dict restore the network: `load_converted` converts a fresh one and loads the
# weights.

# %%
from ghost_plugin.conversion.restore import load_converted

plan.save(out / 'plan.json')
torch.save(tuned.state_dict(), out / 'tuned.pth')
fresh = timm.create_model('resnet10t', num_classes=10, in_chans=1, channels=(32, 64, 128, 256))
restored = load_converted(fresh, out / 'plan.json', out / 'tuned.pth')
print(f'top-1 {accuracy(restored):.1f} %')

# %% [markdown]
# ## Next
#
# - `ghost-plugin plan`, `convert` and `finetune` do the same from the command line, for class
#   folders of images.
# - Fewer multiply-adds are not less time. Give `latency=` and the runtime that you deploy where
#   time counts; [deploy.ipynb](deploy.ipynb) measures it.
# - [Conversion](../../ghost_plugin/conversion/README.md) explains all options, each reason, and
#   what to do when accuracy is lost.
