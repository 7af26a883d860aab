"""Planted bugs: what the laws are tested with."""
