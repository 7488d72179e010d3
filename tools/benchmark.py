#!/usr/bin/env python3
"""Time models and backends: ``ghost-plugin benchmark``."""

import sys

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(['benchmark', *sys.argv[1:]])
