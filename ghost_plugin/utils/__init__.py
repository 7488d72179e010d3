"""Files, checkpoints, optional packages and small tools for modules."""
