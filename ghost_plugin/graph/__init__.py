"""Analysis of a model's graph for fusion, conversion and pruning."""
