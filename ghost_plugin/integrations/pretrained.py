"""Models as folders: how to build them, what was changed in them, their weights, and a card.

A folder holds ``config.json``, ``model.safetensors``, ``README.md`` and, where one is given, the
conversion plan. Nothing in it is a pickle. The folder of an unchanged model of timm is one of
timm's: ``timm.create_model('local-dir:FOLDER', pretrained=True)``.
"""

import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..conversion import ConversionPlan
from ..layers.ghost import GhostConv2d
from ..profiling import count
from ..utils import optional
from ..utils.module_changes import (
    apply_changes,
    find_changes,
    get_tensors,
    set_tensors,
)

CONFIG, WEIGHTS, CARD, PLAN = 'config.json', 'model.safetensors', 'README.md', 'plan.json'
BUFFERS = 'buffers.safetensors'  # those that no state dict holds
KEY = 'ghost_plugin'  # in config.json, beside timm's keys
FORMAT_VERSION = 1
HUB = 'hf-hub:'
_RATES = ('drop_rate', 'drop_path_rate', 'drop_block_rate')  # of timm's create_model
# Keys of timm's create_model that load other files.
_LOADING = ('pretrained', 'checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay')


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    builder: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    plan: ConversionPlan | None = None,
    example_input: Any = None,
    accuracy: Mapping[str, float] | None = None,
    license: str | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Save a model as a folder that :func:`from_pretrained` builds again, bit by bit.

    The files are written beside the folder, built again and compared before they take their place.

    Args:
        model: Any network that a builder makes, also converted, fused, or pruned by
            torch-pruning. It stays unchanged.
        folder: Folder to write; files of these names in it are replaced.
        builder: What builds the network as it was before conversion, fusion and pruning:
            ``'timm:NAME'``, ``'torchvision:NAME'``, ``'openmmlab'`` or
            ``'package.module:function'``. Models of timm say it themselves.
        arguments: Keyword arguments of the builder, values for JSON. For ``'openmmlab'`` the
            config of the model, with its ``default_scope``.
        plan: The conversion plan, to be kept with the model.
        example_input: Input whose multiply-adds the card gives; an image of the size of timm's
            config by default.
        accuracy: Names and values for the card, such as ``{'top-1 (%) on ImageNet-1k': 74.0}``.
        license: Name of the licence of the weights, for the card.
        push_to_hub: Repository on the Hugging Face hub, ``'user/name'``, to upload the folder to.

    Raises:
        ValueError: No builder is known, it builds another network, or the model holds what cannot
            be described. Nothing is written then.
        ImportError: safetensors, or the builder's package, is not installed.
        OSError: The folder cannot be written.
    """
    optional.require('safetensors')
    from safetensors.torch import save_file

    if push_to_hub is not None:
        optional.require('huggingface_hub')
    config = _timm_config(model, arguments)
    if builder is None and config is None:
        raise ValueError(
            f'what builds this {type(model).__name__} is not known; give builder=, such as '
            "'torchvision:resnet18', 'openmmlab' or 'mypackage.models:make_net', and its arguments"
        )
    if builder is None:
        builder = f'timm:{config["architecture"]}'
        made = getattr(model, '_model_args', {})  # timm leaves its drop rates out of the config
        rates = {key: made[key] for key in _RATES if key in made}
        arguments = {**rates, **config.get('model_args', {})}
    arguments = _plain(arguments or {})
    built = _build(builder, arguments)
    changes = find_changes(built, model)
    if changes and changes[0]['name'] == '' and 'class' in changes[0]:
        raise ValueError(
            f'{builder} builds a {type(built).__name__}, and the model is a '
            f'{type(model).__name__}; give the builder of this model'
        )
    described = {
        'format_version': FORMAT_VERSION,
        'version': __version__,
        'builder': builder,
        'arguments': arguments,
        'changes': changes,
    }
    kept, others = get_tensors(model)
    own = get_tensors(built)[1]
    others = {k: t for k, t in others.items() if k not in own or not torch.equal(t, own[k])}
    is_timms = config is not None and not changes
    content = {**(config if is_timms else {}), KEY: described}
    files = {
        CONFIG: json.dumps(content, indent=2) + '\n',
        CARD: _card(model, built, described, example_input, config, accuracy, license),
        **({PLAN: json.dumps(plan.as_dict(), indent=1) + '\n'} if plan is not None else {}),
    }
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}.', dir=folder.parent) as name:
        partial = Path(name)
        save_file(_separate(kept), partial / WEIGHTS, metadata={'format': 'pt'})
        if others:
            save_file(_separate(others), partial / BUFFERS)
        for file, text in files.items():
            (partial / file).write_text(text, encoding='utf-8')
        _check_copy(model, _restore(partial, trusted=True))
        folder.mkdir(exist_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG):
            os.replace(path, folder / path.name)
        for file in (BUFFERS, PLAN):  # of a model that was there before
            if not (others if file == BUFFERS else plan):
                (folder / file).unlink(missing_ok=True)
    if push_to_hub is not None:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=push_to_hub, folder_path=folder)


def from_pretrained(folder: str | os.PathLike[str], *, trusted: bool = False) -> nn.Module:
    """Build the model that :func:`save_pretrained` wrote.

    Args:
        folder: The folder, or ``'hf-hub:user/name'`` on the Hugging Face hub.
        trusted: Call the function of your own code, or build the OpenMMLab config, that the folder
            names. Both can run any code, so they are refused without it. Models of timm and
            torchvision need no trust.

    Returns:
        The model in eval mode.

    Raises:
        FileNotFoundError: No such folder, or a file is missing in it.
        ValueError: It holds no such model, or one that has to be trusted.
        ImportError: safetensors, or the builder's package, is not installed.
    """
    optional.require('safetensors')
    name = os.fspath(folder)
    if name.startswith(HUB):
        optional.require('huggingface_hub')
        from huggingface_hub import snapshot_download

        name = snapshot_download(name.removeprefix(HUB))
    return _restore(Path(name), trusted)


def _restore(folder: Path, trusted: bool) -> nn.Module:
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f'no {name} in {str(folder)!r}; give a folder that gp.save_pretrained wrote'
            )
    try:
        described = json.loads((folder / CONFIG).read_text(encoding='utf-8'))[KEY]
        version, builder = described['format_version'], described['builder']
        arguments, changes = described['arguments'], described['changes']
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f'{str(folder / CONFIG)!r} is not of gp.save_pretrained: {error}; folders of timm '
            "alone load by timm.create_model('local-dir:FOLDER', pretrained=True)"
        ) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f'a folder of format_version {version!r}, and ghost_plugin {__version__} reads '
            f'{FORMAT_VERSION}; upgrade ghost_plugin'
        )
    if not trusted and builder.partition(':')[0] not in _BUILDERS:
        raise ValueError(
            f'{str(folder)!r} is built by {builder!r}, which can run any code; if you trust the '
            'folder, load it by from_pretrained(folder, trusted=True)'
        )
    model = apply_changes(_build(builder, arguments), changes)
    tensors = load_file(folder / WEIGHTS)
    if (folder / BUFFERS).is_file():
        tensors |= load_file(folder / BUFFERS)
    lost = get_tensors(model)[0].keys() - tensors.keys()
    if lost:
        raise ValueError(
            f'{str(folder / WEIGHTS)!r} lacks {len(lost)} tensors, {min(lost)!r} first'
        )
    set_tensors(model, tensors)
    return model.eval()


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    optional.require('timm')
    import timm

    if refused := [key for key in _LOADING if key in arguments]:
        raise ValueError(f'arguments of a saved model must not load other files: {refused}')
    return timm.create_model(name, **arguments)


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    optional.require('torchvision')
    from torchvision import models

    own = {'weights': None}
    if name in models.list_models(module=models.detection) + models.list_models(
        module=models.segmentation
    ):
        own['weights_backbone'] = None  # otherwise it is downloaded
    return models.get_model(name, **{**own, **arguments})


_BUILDERS = {'timm': _from_timm, 'torchvision': _from_torchvision}


def _build(builder: str, arguments: dict[str, Any]) -> nn.Module:
    kind, _, name = builder.partition(':')
    if kind in _BUILDERS:
        return _BUILDERS[kind](name, arguments).eval()
    if builder == 'openmmlab':
        optional.require('mmengine')
        from mmengine.config import ConfigDict
        from mmengine.registry import MODELS, init_default_scope

        config = ConfigDict(arguments)
        init_default_scope(config.pop('default_scope', 'ghost_plugin'))
        model = MODELS.build(config)
        model.eval()  # on its own line: many of OpenMMLab's return None here
        return model
    try:
        found: Any = importlib.import_module(kind)
        for part in name.split('.'):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            "a builder is 'timm:NAME', 'torchvision:NAME', 'openmmlab' or "
            f"'package.module:function' that can be imported, got {builder!r}: {error}"
        ) from error
    model = found(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f'{builder} returns a {type(model).__name__}, not a torch.nn.Module')
    return model.eval()


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON holds them."""
    try:
        return json.loads(json.dumps(dict(arguments)))
    except TypeError as error:
        raise ValueError(
            f'the arguments of a builder are stored as JSON: {error}; give a function of your own '
            "without such arguments as builder='package.module:function'"
        ) from error


def _check_copy(model: nn.Module, copy: nn.Module) -> None:
    """Raise unless a model and its copy have the same structure and tensors."""
    ours, theirs = ({**kept, **others} for kept, others in map(get_tensors, (model, copy)))
    different = [
        name for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].dtype != theirs[name].dtype
        or not torch.equal(ours[name].cpu(), theirs[name].cpu())
    ]  # fmt: skip
    if different or find_changes(copy, model):
        raise ValueError(
            f'the folder would not give the same model ({len(different)} tensors differ); nothing '
            'was written'
        )


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share no memory, as the format wants them."""
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}


def _timm_config(model: nn.Module, arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The config.json of timm for one of its models; None for others."""
    if not getattr(model, 'pretrained_cfg', None) or not optional.usable('timm'):
        return None
    from timm.models._hub import save_config_for_hf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        save_config_for_hf(model, str(path), model_args=dict(arguments or {}))
        return json.loads(path.read_text(encoding='utf-8'))


def _card(
    model: nn.Module,
    built: nn.Module,
    described: Mapping[str, Any],
    example_input: Any,
    config: Mapping[str, Any] | None,
    accuracy: Mapping[str, float] | None,
    license: str | None,
) -> str:
    """The model card in Markdown, with a head in YAML as the Hugging Face hub reads it."""
    device = next(model.parameters()).device
    if example_input is None and config is not None:
        example_input = torch.zeros(1, *config['pretrained_cfg']['input_size'], device=device)
    nets = {'Saved model': model}
    if described['changes']:
        nets = {'As built': built.to(device), **nets}
    rows = []
    for name, net in nets.items():
        ghosts = sum(isinstance(module, GhostConv2d) for module in net.modules())
        if example_input is None:
            params, macs = sum(p.numel() for p in net.parameters()), ''
        else:
            cost = count(net, example_input)
            params, macs = cost.params, f'{cost.macs:,}'
        rows.append(f'| {name} | {params:,} | {macs} | {ghosts} |')
    head = {
        **({'license': license} if license else {}),
        'library_name': KEY,
        'tags': ['ghostnet', 'ghost_plugin'],
    }
    accuracies = [f'- {name}: {value:g}' for name, value in (accuracy or {}).items()]
    trust = '' if described['builder'].partition(':')[0] in _BUILDERS else ', trusted=True'
    return '\n'.join([
        '---', *(f'{key}: {json.dumps(value)}' for key, value in head.items()), '---', '',
        f'# {type(model).__name__}', '',
        f'Built by `{described["builder"]}` with `{json.dumps(described["arguments"])}`; '
        f'{len(described["changes"])} modules were changed since.', '',
        '```python', 'import ghost_plugin as gp', '',
        f"model = gp.from_pretrained('FOLDER'{trust})  # or 'hf-hub:USER/NAME'", '```', '',
        '| | Parameters | Multiply-adds | Ghost convs |', '| --- | --- | --- | --- |', *rows, '',
        *(['Accuracy, as given by the author:', '', *accuracies] if accuracies
          else ['No accuracy was given.']),
        '',
    ])  # fmt: skip
