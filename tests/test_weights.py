import json
import zlib

import numpy as np
import pytest
import torch

import ghost_plugin as gp


def golden_weights(shapes, gain):
    """The made-up weights that shared/golden/README.md describes."""
    state = {}
    for name, shape in shapes.items():
        a = (
            np.random.default_rng(zlib.crc32(name.encode()))
            .standard_normal(shape)
            .astype('float32')
        )
        if name.endswith('num_batches_tracked'):
            a = np.zeros(shape, 'int64')
        elif name.endswith('running_var'):
            a = np.abs(a) * np.float32(0.2) + np.float32(0.6)
        elif len(shape) == 1 and name.endswith('weight') and not name.endswith('running_mean'):
            a = (np.float32(0.5) + np.float32(0.05) * a) * np.float32(gain)
        elif len(shape) == 1:
            a = np.float32(0.1) * a
        else:
            a = a * np.float32(np.sqrt(1 / np.prod(shape[1:])))
        state[name] = torch.from_numpy(np.asarray(a))
    return state


def test_v1_gives_the_official_logits(shared):
    timm = pytest.importorskip('timm')
    keys = json.loads((shared / 'golden/keys.json').read_text())['v1_1.0']
    model = timm.create_model('ghostnet_plugin')
    model.load_state_dict(golden_weights(keys['state_dict'], keys['bn_gain']), strict=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 160, 224)).astype('float32')
    logits = model.double().eval()(torch.from_numpy(x).double()).detach()
    want = torch.from_numpy(np.load(shared / 'golden/logits.npz')['v1_1.0'])
    assert (logits - want).abs().max() <= 1e-9 * want.abs().max()


def test_wrapped_and_polluted_checkpoints_load(tmp_path):
    net = gp.GhostNet(0.5)
    state = {f'module.backbone.{k}': v for k, v in net.state_dict().items()}
    state['module.backbone.total_ops'] = torch.zeros(1)
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    other = gp.GhostNet(0.5)
    report = gp.load_weights(other, tmp_path / 'w.pth')
    assert report == gp.load_weights(other, str(tmp_path / 'w.pth'))
    assert (report.missing, report.unused) == ((), ())
    torch.testing.assert_close(dict(other.state_dict()), dict(net.state_dict()), rtol=0, atol=0)


def test_wrong_width_is_refused_and_nothing_changes():
    net = gp.GhostNet(0.5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r'conv_stem\.weight is .* there'):
        gp.load_weights(net, gp.GhostNet(1.0).state_dict())
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


class Hostile:
    def __reduce__(self):
        return (print, ('owned',))


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({'state_dict': Hostile()}, tmp_path / 'hostile.pth')
    (tmp_path / 'text.pth').write_text('hello')
    for name in ('hostile.pth', 'text.pth'):
        with pytest.raises(ValueError, match=name):
            gp.load_weights(gp.GhostNet(0.5), tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        gp.load_weights(gp.GhostNet(0.5), tmp_path / 'none.pth')
