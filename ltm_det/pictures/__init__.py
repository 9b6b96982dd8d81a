"""Drawings of predictions, of merging, of times."""
