"""The version of this code. Promise: nothing is imported for it; the package's metadata are made from it."""

__version__ = "0.1.0"
