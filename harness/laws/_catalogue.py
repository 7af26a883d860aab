"""All laws, by family: a new family is a module of this room and a word here."""

from importlib import import_module

from harness.laws._law import REGISTERED

WORDS = (
    "positions", "guidance", "masks", "state", "reuse", "randomness", "streams", "acceptance", "rules", "work", "batch",
    "sensitivity", "numbers",
)  # fmt: skip
FAMILIES = tuple(import_module(f"harness.laws._{word}") for word in WORDS)
LAWS = tuple(law for family in FAMILIES for law in REGISTERED if law.test.__module__ == family.__name__)
