"""What stands around the decoder: CUDA graphs and the observer. Without them it runs all the same."""

from harness.speculative.tools._graphs import Workspace
from harness.speculative.tools._observer import ROUNDS, VALUES, Observer
