"""Networks as data and pure functions; shared by both sides and checked by recorded tensors."""

from harness.models._block import BlockWeights, layer_norm
from harness.models._pair import CLOSE_NOISE, ModelPair, close_pair, load_digits, load_pair, pair_checksums, random_pair
