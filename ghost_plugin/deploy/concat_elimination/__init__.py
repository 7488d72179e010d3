"""Elimination of concatenations in exported graphs."""
