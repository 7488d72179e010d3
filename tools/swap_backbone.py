#!/usr/bin/env python3
"""Put a GhostNet into an OpenMMLab config: ``ghost-plugin swap``."""

import sys

from ghost_plugin.cli.main import main

if __name__ == '__main__':
    main(['swap', *sys.argv[1:]])
