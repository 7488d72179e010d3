#!/usr/bin/env python3
"""Write a model for other runtimes: ``ghost-plugin export``."""

import sys

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(['export', *sys.argv[1:]])
