"""What speculation costs and gains: time, target calls, memory."""

from harness.bench._files import Speed
from harness.bench._speed import Bench, Machine, SpeedRow
