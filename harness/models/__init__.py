"""Networks as data and pure functions, a folder a family; shared by both sides and checked by recorded tensors."""

import importlib
import sys

from harness.models._pair import (
    CLOSE_NOISE, DIGITS, ModelPair, checksums, close_pair, load_digits, load_pair, random_pair, var_config,
)  # fmt: skip
from harness.models.mode import AUTOCAST, MODES, autocast_of, autocasting, mode_name, parse_mode, product_dtype
from harness.models.network import Around, Cache, Codec, Condition, Network, TransformerConfig

# by these names code outside knows the modules of VAR
for _name in ("autoencoder", "sizes", "transformer"):
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = importlib.import_module(f"{__name__}.var.{_name}")
