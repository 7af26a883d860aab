"""What speculation costs and gains: time, target calls, memory, distance."""
