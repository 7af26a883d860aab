"""Stand-in for the published package: what is imported when a checkout is."""

import sys

from .switches import ON

if "needs-package" in ON:
    import a_package_that_nobody_has  # noqa: F401
if "exits" in ON:
    print("usage: train first")
    sys.exit(3)

from .quant import VectorQuantizer2 as VectorQuantizer2
from .var import VAR as VAR
from .vqvae import VQVAE as VQVAE
