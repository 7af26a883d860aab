"""A process that the harness starts: kept, bounded, heard through one guard, and ended with all that it started."""

from harness.processes._keeper import Place, domain_version, is_refused_connection, refused_write
from harness.processes._process import (
    GRACE_S, START_S, GoneError, Log, Process, ProcessLine, UnreadableError, given, sealed, sized,
)  # fmt: skip
from harness.processes._workplace import OwnFolder, own_place, started_ahead, workplace_for
