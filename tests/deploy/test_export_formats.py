"""Writers and readers of export formats: AOTInductor packages above all."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import cpp_extension

import ghost_plugin as gp
from ghost_plugin.deploy import export_formats
from ghost_plugin.deploy.export_formats import FORMATS, cpp_compiler
from ghost_plugin.utils import torch_compat


def needs_compiler():
    if not torch_compat.HAS_AOTINDUCTOR or not shutil.which('g++'):
        pytest.skip('needs torch 2.6 and g++')


def ghost_net():
    return nn.Sequential(gp.GhostModule(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_an_aot_package_loads_without_a_compiler_and_checks_shapes(tmp_path, monkeypatch):
    needs_compiler()
    net, path = ghost_net(), tmp_path / 'net.pt2'
    path.write_text('older')
    report = gp.export(net, torch.randn(2, 3, 16, 16), path, aot=True, dynamic='batch')
    assert (report.format, report.exporter) == ('aot', 'aot')
    assert report.max_rel_diff <= 1e-4
    assert report.free == {'input': {0: 'batch'}}
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setenv('PATH', '')
    monkeypatch.setenv('CXX', 'no-compiler')
    run = FORMATS['.pt2'].read(path)
    for x in (torch.randn(5, 3, 16, 16), torch.randn(3, 16, 16, 2).permute(3, 0, 1, 2)):
        torch.testing.assert_close(run([x])[0], net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"\(1, 3, 20, 16\) .* compiled for \('batch', 3, 16, 16\)"
    ):
        run([torch.randn(1, 3, 20, 16)])
    with pytest.raises(ValueError, match='float64, but the file was compiled for'):
        run([torch.randn(1, 3, 16, 16).double()])


def test_aot_without_a_compiler_or_with_an_older_torch(tmp_path, monkeypatch):
    net, x, path = ghost_net(), torch.randn(2, 3, 16, 16), tmp_path / 'net.pt2'
    monkeypatch.setattr(torch_compat, 'HAS_AOTINDUCTOR', True)
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(export_formats.shutil, 'which', lambda name: None)
    with pytest.raises(RuntimeError, match=r'neither g\+\+ nor clang\+\+ was found; install g\+\+'):
        gp.export(net, x, path, aot=True)
    with pytest.raises(ValueError, match=r'aot does not work here: .*needs a C\+\+ compiler'):
        gp.optimize(net, x, 'aot', rounds=1)
    monkeypatch.setenv('CXX', 'mine')
    with pytest.raises(RuntimeError, match='mine was found'):
        cpp_compiler()
    monkeypatch.setattr(export_formats.shutil, 'which', lambda name: name)
    assert cpp_compiler() == 'mine'
    monkeypatch.setattr(torch_compat, 'HAS_AOTINDUCTOR', False)
    with pytest.raises(RuntimeError, match=r'need torch 2\.6 or newer'):
        gp.export(net, x, path, aot=True)
    with pytest.raises(ValueError, match=r'aot=True .* ends in \.pt2, got'):
        gp.export(net, x, tmp_path / 'net.onnx', aot=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_aot_of_a_converted_network_at_any_batch_and_size(converted, tmp_path):
    needs_compiler()
    path = tmp_path / 'net.pt2'
    report = gp.export(converted, torch.randn(1, 3, 32, 40), path, aot=True)
    assert report.max_rel_diff <= 1e-4
    assert {shape[0] for shape in report.checked} == {1, 2, 3}
    x = torch.randn(4, 3, 50, 34)
    (got,) = FORMATS['.pt2'].read(path)([x])
    torch.testing.assert_close(got, converted(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_aot_backend_takes_other_shapes(converted):
    needs_compiler()
    fast = gp.optimize(converted, torch.randn(1, 3, 32, 32), 'aot', rounds=1)
    for size in ((1, 3, 32, 32), (3, 3, 41, 27)):
        x = torch.randn(size)
        torch.testing.assert_close(fast(x), converted(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [True, 'batch'])
def test_aot_of_a_backbone(dynamic, tmp_path):
    needs_compiler()
    model = gp.GhostNet(0.5, out_indices=(2, 4)).eval()
    report = gp.export(
        model, torch.randn(1, 3, 64, 64), tmp_path / 'net.pt2', aot=True, dynamic=dynamic
    )
    assert report.max_rel_diff <= 1e-4


@pytest.mark.slow
def test_a_package_runs_without_python(tmp_path):
    needs_compiler()
    net, path, program = ghost_net(), tmp_path / 'net.pt2', tmp_path / 'run_package'
    gp.export(net, torch.randn(2, 3, 16, 16), path, aot=True, dynamic='batch')
    source = Path(__file__).parents[2] / 'tools' / 'cpp' / 'run_package.cpp'
    command = ['g++', '-std=c++17', str(source), '-o', str(program)]
    command += [f'-isystem{folder}' for folder in cpp_extension.include_paths()]
    for folder in cpp_extension.library_paths():
        command += [f'-L{folder}', f'-Wl,-rpath,{folder}']
    subprocess.run([*command, '-ltorch', '-ltorch_cpu', '-lc10'], check=True)
    ran = subprocess.run([program, path, '5', '16', '16'], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    sizes, total = ran.stdout.split('] ')
    assert sizes == '[5, 8'
    assert float(total) == pytest.approx(net(torch.ones(5, 3, 16, 16)).sum().item(), rel=1e-4)
