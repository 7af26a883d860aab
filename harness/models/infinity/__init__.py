"""Infinity: bits of rectangular maps, conditioned on texts by cross-attention (the Infinity page)."""
