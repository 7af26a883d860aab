"""What decoder, oracle and judge agree on: integers, numbers and records; no networks, no judgement."""

from harness.protocol._decoder import DECLINES, OF_SETTINGS, Contract, Implementation, Settings, declined
from harness.protocol._request import (
    ORDERS, Guidance, NoiseOrder, Request, Rows, ScaleGuidance, Sizes, growth, guidance_text, largest_factor,
    request_of, request_values, unguided,
)  # fmt: skip
from harness.protocol._trace import Intermediates, Round, Trace
from harness.protocol.noise import (
    ACCEPT, CORRECT, DRAFT, SMOOTH, TOKEN, ExclusiveNoise, Ledger, Noise, NoiseBefore, Reading, RecordedNumbers, RowsOf,
    SeededNoise,
)  # fmt: skip
from harness.protocol.pyramid import PATCH_NUMS_256, PATCH_NUMS_512, ScalePyramid
