"""Recorded tensors: outside truth (read only) and this project's own goldens (written by `golden record` alone)."""
