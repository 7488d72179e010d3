#!/usr/bin/env python3
"""Test a checkpoint of MMDetection or MMPretrain: ``ghost-plugin test``."""

import sys

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(['test', *sys.argv[1:]])
