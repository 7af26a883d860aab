"""The public names of sdvar-harness."""
