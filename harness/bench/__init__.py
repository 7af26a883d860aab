"""Measurements: what a policy costs and what it gains."""
