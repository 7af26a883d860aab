"""The pytest plugin: laws and a verification of somebody's decoder as items of their own test run."""
