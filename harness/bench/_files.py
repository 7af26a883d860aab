"""What `bench` measured, as a file that says what was measured on what: `bench --json`."""

from dataclasses import asdict, dataclass

from harness.bench._speed import Machine, SpeedRow
from harness.files import compact, finite
from harness.provenance import versions
from harness.rounding import precision


@dataclass(frozen=True)
class Speed:
    """One run of `bench`."""

    models: str  # name of the pair
    mode: str  # dtype, or TF32
    draft_dtype: str  # of the draft
    graphs: bool  # recorded work; else kernel by kernel
    bonus: bool  # the scale after the drafted ones is finished too
    machine: Machine  # where
    rows: list[SpeedRow]  # measurements
    compiled: bool = False  # the networks' blocks are; files from before there was a choice do not say

    @property
    def title(self) -> str:
        """Mode in words."""
        same = self.draft_dtype == ("float32" if self.mode == "TF32" else self.mode)
        named = self.mode if same else f"{self.mode}, draft {self.draft_dtype}"
        launched = "CUDA graphs" if self.graphs else "kernel by kernel"
        return f"{named}, {launched}{', compiled' if self.compiled else ''}"

    def document(self) -> bytes:
        return compact({**finite(asdict(self)), "precision": precision(), "versions": versions()})
