"""Weights of the replaced convolutions: inherited, fitted and reconstructed."""
