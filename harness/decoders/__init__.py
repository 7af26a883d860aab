"""A decoder under test: found, built, and run in this process or in its own."""

from harness.decoders._conversation import capacity
from harness.decoders._crash import crash_of
from harness.decoders._factory import (
    OWN_DECODER, Built, Factory, Limits, OutOfTimeError, Surroundings, attribute_of, build_by_factory, factory_name,
    is_own_decoder, load_factory, parse_factory_options, pickled_factory,
)  # fmt: skip
from harness.decoders._in_process import MOVED, NO_SO_FAR, run_in_process
from harness.decoders._runner import Other, OwnProcess, Runner, Terms, claimed_contract, start_runner
