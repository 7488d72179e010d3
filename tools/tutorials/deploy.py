# %% [markdown]
# # Deploy a converted network
#
# A converted network is fused, exported, checked, quantized and timed beside its original. Fewer
# multiply-adds are not always less time, and the last part shows where.
#
# You need `pip install timm scikit-learn matplotlib` and, in a clone, `pip install -e '.[export]'`.
# All files go into `work_dirs`.

# %%
import importlib.util
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import onnxruntime
import openvino
import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import ghost_plugin as gp
from ghost_plugin.profiling import time_together

out = Path('work_dirs/deploy')
out.mkdir(parents=True, exist_ok=True)
_ = torch.manual_seed(0)

# %% [markdown]
# ## A network
#
# The same small ResNet and the same digits as in
# [convert_timm_model.ipynb](convert_timm_model.ipynb), trained for a shorter time.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
images = F.interpolate((images - 4.9) / 6.0, size=(64, 64), mode='bicubic')  # (N, 1, 64, 64)
labels = torch.tensor(digits.target)
train_images, val_images, val_labels = images[:1382], images[1451:], labels[1451:]

original = timm.create_model('resnet10t', num_classes=10, in_chans=1, channels=(32, 64, 128, 256))
optimizer = torch.optim.AdamW(original.parameters(), lr=4e-3, weight_decay=0.05)
batches = [batch for _ in range(3) for batch in torch.randperm(len(train_images)).split(32)]
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=len(batches))
for batch in batches:
    optimizer.zero_grad()
    F.cross_entropy(original(train_images[batch]), labels[batch]).backward()
    optimizer.step()
    schedule.step()
original.eval()

calibration = list(train_images[:128].split(32))
image = val_images[:1]
model, plan = gp.convert(original, image, ratio=2, calibration=calibration)
for name, net in {'original': original, 'converted': model}.items():
    print(f'{name}: {gp.count(net, image).macs / 1e6:.1f} M multiply-adds')

# %% [markdown]
# ## Fuse
#
# `gp.fuse` returns a copy for inference: norms go into the convs in front of them, and the
# channel permutations of a conversion go into the layers that read them. With an input it
# compares outputs.

# %%
fused = gp.fuse(model, image)
folding = fused.folding
print(f'{folding.folded} norms folded, {folding.orders} channel permutations absorbed')
print(f'norms that stay: {folding.left}, largest difference {folding.max_abs_diff:.0e}')

# %% [markdown]
# ## Export
#
# The suffix chooses the format. `gp.export` fuses by itself, finds the dynamic axes, reads the
# file back with its runtime and compares it with PyTorch. Only a file that agrees is kept.

# %%
for path in ('digits.onnx', 'digits.xml'):
    report = gp.export(model, image, out / path)
    print(f'{path}: {report.size / 1e3:.0f} kB, difference {report.max_rel_diff:.0e} (relative)')
    print(f'  dynamic axes {report.free["input"]}')
    print(f'  compared sizes {report.checked}')

# %% [markdown]
# The files need no `ghost_plugin`. ONNX Runtime and OpenVINO read them as any other. On processors
# that have bfloat16, OpenVINO computes with it, unless it is told not to.


# %%
def run_onnx(path, batch):
    session = onnxruntime.InferenceSession(out / path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'input': batch.numpy()})[0])


def run_openvino(path, batch):
    network = openvino.Core().read_model(out / path)
    network.reshape(list(batch.shape))  # int8 files must not have dynamic sizes
    compiled = openvino.compile_model(network, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return torch.from_numpy(compiled(batch.numpy())[0])


def accuracy(logits):
    return f'top-1 {100 * (logits.argmax(1) == val_labels).float().mean():.1f} %'


with torch.no_grad():
    wanted = model(val_images)
print(f'original, PyTorch: {accuracy(original(val_images))}')
print(f'converted, PyTorch: {accuracy(wanted)}')
for run, path in ((run_onnx, 'digits.onnx'), (run_openvino, 'digits.xml')):
    logits = run(path, val_images)
    difference = ((logits - wanted).abs().max() / wanted.abs().max()).item()
    print(f'converted, {path}: {accuracy(logits)}, difference {difference:.0e} (relative)')

# %% [markdown]
# ## Quantize
#
# `gp.quantize` writes int8, by ONNX Runtime or, for OpenVINO, by NNCF. It needs calibration images
# without labels, and measures error and time. Compare accuracies before you deploy int8.

# %%
int8 = {'onnxruntime': (run_onnx, 'digits-int8.onnx'), 'nncf': (run_openvino, 'digits-int8.xml')}
for package, (run, path) in int8.items():
    if importlib.util.find_spec(package) is None:
        print(f'{path} is left out: {package} is not installed (pip install {package})')
        continue
    report = gp.quantize(model, calibration, out / path)
    print(f'{path}: {accuracy(run(path, val_images))}, error of the logits {report.typical:.3f}')
    print(f'  {report.size / 1e3:.0f} kB, {report.float_size / 1e3:.0f} kB in float32')
    for kind, milliseconds in report.times.items():
        title = 'all in float32' if kind == 'float32' else f'depthwise convs in {kind}'
        print(f'  {title}: {milliseconds:.2f} ms for a batch of {len(calibration[-1])}')

# %% [markdown]
# ## Runtimes
#
# `gp.optimize` builds a backend, compares it with the model and returns a callable. Here original
# and converted network are timed in turns in four backends, for one image and for a batch. Bars are
# medians, lines are quartiles; other programs on the machine make them longer.

# %%
backends = ('eager', 'channels-last', 'onnxruntime', 'openvino')
times = {}
for size, rounds in ((1, 30), (16, 10)):
    example = train_images[:size]
    calls = {}
    for backend in backends:
        for name, net in {'original': original, 'converted': model}.items():
            fast = gp.optimize(net, example, backend, split_concat=False, rounds=1)
            calls[f'{backend} {name}'] = partial(fast, example)
    # A pause before each round, because threads of other runtimes go on for a while.
    times[size] = {t.name: t for t in time_together(calls, rounds, rest=True, min_ms=10)}

# %%
figure, axes = plt.subplots(1, len(times), figsize=(10, 3.2), layout='constrained')
for axis, (size, found) in zip(axes, times.items(), strict=True):
    for shift, name, colour in ((-0.2, 'original', 'silver'), (0.2, 'converted', 'tab:blue')):
        timings = [found[f'{backend} {name}'] for backend in backends]
        places = [place + shift for place in range(len(backends))]
        medians = [t.median for t in timings]
        spread = [[t.median - t.low for t in timings], [t.high - t.median for t in timings]]
        bars = axis.bar(places, medians, 0.4, color=colour, label=name, yerr=spread, capsize=3)
        axis.bar_label(bars, fmt='%.3g', fontsize=9)
    axis.set_xticks(range(len(backends)), backends)
    axis.set(title=f'batch of {size}', ylabel='milliseconds')
    axis.margins(y=0.1)
axes[0].legend()
plt.show()

# %% [markdown]
# The same in words, with "no clear difference" where the quartiles overlap. A Ghost conv replaces
# one conv by two small ones and a concatenation. In eager PyTorch each call has its price, whatever
# it computes, and one image is little to compute. So the converted network is often the slower one
# there. Runtimes with little overhead per call, and larger batches, gain more.

# %%
for size, found in times.items():
    for backend in backends:
        before, after = (found[f'{backend} {name}'] for name in ('original', 'converted'))
        verdict = 'no clear difference'
        if after.low > before.high or after.high < before.low:
            verdict = 'SLOWER' if after.low > before.high else 'faster'
        share = after.median / before.median
        print(f'batch {size:2d}, {backend:13s}: {share:.2f} of the time of the original, {verdict}')

# %% [markdown]
# ## The fastest here
#
# Each result has a report. Without a backend, `gp.optimize(model, image)` tries all that work on
# your machine, compilers included, and takes the fastest; that needs a minute or two.

# %%
fast = gp.optimize(model, image, 'onnxruntime', split_concat=False)
print(fast.report.table())
print('largest difference', (fast(image) - model(image)).abs().max().item())

# %% [markdown]
# ## Next
#
# - `gp.plan(model, image, latency=0.8, latency_backend='openvino')` plans for the time in a
#   runtime, and refuses where Ghost convs do not gain that much.
# - `ghost-plugin export`, `optimize` and `benchmark` do the same from the command line.
# - [Deployment](../../ghost_plugin/deploy/README.md) has the formats, all backends and known
#   faults of runtimes.
