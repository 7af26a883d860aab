"""Which mistakes this checkout holds; written anew by tests/published/checkout.py."""

ON = frozenset()
