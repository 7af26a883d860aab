"""Recorded tensors: outside truth (read only) and this project's own goldens (written by `golden record` alone)."""

from harness.golden._cases import CaseResult, FileResult, golden_totals, recorded_networks
from harness.golden._check import AnyCase, check_recording, read_recordings, recorded_cases
from harness.golden._infinity import InfinityCase
from harness.golden._metadata import GoldenCase
from harness.golden._plan import golden_inventory, planned_ids, stale_entries
from harness.golden._record import (
    WHOLE_FILE, Change, Regeneration, broken_laws, changed_goldens, refuse_installed, regenerate_all, whose_code,
    write_golden,
)  # fmt: skip
from harness.golden._store import Recording, content_digest, generator_probe, read_recording, same_generator
