"""All laws, by family: a new family is a module of this room and a word here."""

from harness.laws import _acceptance as acceptance
from harness.laws import _batch as batch
from harness.laws import _guidance as guidance
from harness.laws import _masks as masks
from harness.laws import _numbers as numbers
from harness.laws import _positions as positions
from harness.laws import _randomness as randomness
from harness.laws import _reuse as reuse
from harness.laws import _rules as rules
from harness.laws import _sensitivity as sensitivity
from harness.laws import _state as state
from harness.laws import _streams as streams
from harness.laws import _work as work
from harness.laws._law import REGISTERED

FAMILIES = (
    positions, guidance, masks, state, reuse, randomness, streams, acceptance, rules, work, batch, sensitivity,
    numbers,
)  # fmt: skip
LAWS = tuple(law for family in FAMILIES for law in REGISTERED if law.test.__module__ == family.__name__)
