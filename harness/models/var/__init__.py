"""VAR: one token a position of a square map, conditioned on a class (spec/var.md)."""

from harness.models.var.checkpoint import load_autoencoder, load_transformer
from harness.models.var.transformer import BlockWeights, before, check_compiler, layer_norm
