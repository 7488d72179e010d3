#!/usr/bin/env python3
"""Train a config of MMDetection or MMPretrain: ``ghost-plugin train``."""

import sys

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]])
