#!/usr/bin/env python3
"""Convert a model: ``ghost-plugin convert``, ``plan``, ``finetune``, ``evaluate``, ``report``."""

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(default='convert')
