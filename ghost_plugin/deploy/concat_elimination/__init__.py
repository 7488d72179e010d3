"""Ghost halves that are read apart, so that no concatenation is computed."""
