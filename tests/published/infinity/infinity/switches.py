"""Which mistakes this checkout holds."""

ON: frozenset[str] = frozenset()
