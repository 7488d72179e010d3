"""What fusion, conversion and pruning know about a model's graph."""
