"""Files of weights are complete or absent."""

import pytest
import torch

from ghost_plugin.utils.checkpoint_io import save


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / 'deep/weights.pth'
    save({'x': torch.zeros(3)}, path)
    content = path.read_bytes()
    with pytest.raises(Exception, match='pickle'):
        save({'x': lambda: None}, path)
    assert path.read_bytes() == content and [p.name for p in path.parent.iterdir()] == [path.name]
