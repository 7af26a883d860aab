"""What `quality` measured, as a file that says what was measured on what: `quality --json`."""

from dataclasses import asdict, dataclass, fields

from harness.files import compact, finite
from harness.provenance import versions
from harness.quality._distances import LEVEL
from harness.quality._loss import Quality, judge_quality, quality_verdict, worst
from harness.quality._rows import QualityRow
from harness.rounding import precision

SCHEMA = 2  # docs/quality.md describes it


@dataclass(frozen=True)
class Measured:
    """One run of `quality`."""

    models: str  # name of the pair
    device: str  # where it was drawn
    cfg: float  # guidance value
    features: str  # name of what images were measured by
    unit: str  # of a Fréchet distance
    real: str  # name of the real data; empty = none
    blocks: int  # of the intervals
    rows: list[QualityRow]  # sequential decoding first
    most: float | None = None  # loss that is allowed; None = none was stated
    most_nats: float | None = None  # in nats an image; likewise
    seconds: float = 0.0  # of the drawing
    stopped: int = 0  # signal that ended it early, or 0; the rows are of what was drawn until then

    @property
    def verdicts(self) -> list[Quality]:
        """The verdict on every row after the first; none where no loss was stated."""
        if self.most is None and self.most_nats is None:
            return []
        return [quality_verdict(row, self.most, self.most_nats) for row in self.rows[1:]]

    def why(self, row: QualityRow) -> str:
        """Return one clause on the verdict on a row."""
        return judge_quality(row, self.most, self.most_nats)[1]

    @property
    def verdict(self) -> Quality | None:
        """The worst verdict on what is under test; None where nothing is, or no loss was stated."""
        rows = zip(self.rows[1:], self.verdicts, strict=False)
        judged = [verdict for row, verdict in rows if not row.yardstick]
        return worst(judged) if judged else None

    def values(self) -> dict[str, object]:
        """Return the run as JSON values; null where there is no figure."""
        rows = [finite(asdict(row)) for row in self.rows]
        for values, verdict in zip(rows[1:], self.verdicts, strict=bool(self.verdicts)):
            values["verdict"] = verdict.value
        header = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}
        return {"schema": SCHEMA, **header, "level": LEVEL, "rows": rows}

    def document(self) -> bytes:
        """Return the run as JSON, with what made it."""
        return compact({**self.values(), "precision": precision(), "versions": versions()})
