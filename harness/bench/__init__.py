"""What speculation costs and gains: time, target calls, memory, and bits."""

from harness.bench._contest import ANSWERS, Contest, TimedDecoderError, contest_rows, sequential_sides
from harness.bench._exactness import Exactness, expected_ties, measure
from harness.bench._speed import Bench, Machine, Speed, SpeedRow
