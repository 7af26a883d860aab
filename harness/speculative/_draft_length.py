"""How many scales a round drafts: fixed, by schedule, or dynamic.

Promise: the answer is always at least 1 and never runs past the last scale, so that no decode can get stuck; a dynamic
length depends on the image's own history alone.

Text forms: `5` · `1/2/3/…`, one number a scale: what a round that begins there drafts · `dynamic:LOW:HIGH`, which
begins at LOW, grows by one after a round accepted whole and shrinks by one after a rejection; `dynamic` is
`dynamic:1:S`.
"""

from dataclasses import dataclass
from typing import Self

from harness.errors import InputError
from harness.numerals import whole


@dataclass(frozen=True)
class DraftLength:
    text: str  # as given
    schedule: tuple[int, ...] = ()  # by scale; one number alone holds everywhere; empty when dynamic
    low: int = 1  # least dynamic length, that of an image before its first round
    high: int = 0  # greatest dynamic length; 0 = the number of scales

    @classmethod
    def parse(cls, value: int | str) -> Self:
        """Return the rule that a number or a text names. Raises `InputError` for another form."""
        text = str(value)
        name, *bounds = text.split(":")
        numbers = bounds if name == "dynamic" else text.split("/")
        # 0 and negative numbers are told apart from nonsense, because `check` knows the range
        try:
            lengths = tuple(whole(number) for number in numbers)
        except ValueError:
            raise InputError("draft_len", text, "must read 5, 1/2/3 or dynamic:1:5", "pass --draft-len 5") from None
        if name != "dynamic":
            return cls(text, lengths)
        if len(lengths) not in (0, 2):
            raise InputError("draft_len", text, "dynamic takes both bounds or none", "pass --draft-len dynamic:1:5")
        low, high = lengths or (1, 0)
        return cls(text, (), low, high)

    def check(self, S: int) -> None:
        """Refuse lengths outside 1..S and schedules that do not cover the pyramid. Raises `InputError`."""
        remedy = f"pass --draft-len {min(5, S)}"
        if self.schedule:
            if len(self.schedule) not in (1, S):
                rule = f"a schedule must have one number a scale ({S}), this one has {len(self.schedule)}"
                raise InputError("draft_len", self.text, rule, f"pass --draft-len {'/'.join(['1'] * S)}")
            if not all(1 <= length <= S for length in self.schedule):
                raise InputError("draft_len", self.text, f"must lie in 1..{S}", remedy)
        elif not 1 <= self.low <= (self.high or S) <= S:
            rule = f"bounds must satisfy 1 <= LOW <= HIGH <= {S}"
            raise InputError("draft_len", self.text, rule, f"pass --draft-len dynamic:1:{S}")

    def count(self, first: int, current: int, S: int) -> int:
        """Return how many scales a round that begins at scale `first` drafts."""
        if not self.schedule:
            return min(current, S - first)
        return min(self.schedule[0 if len(self.schedule) == 1 else first], S - first)

    def after(self, current: int, accepted_all: bool, S: int) -> int:
        if self.schedule:
            return current
        return min(current + 1, self.high or S) if accepted_all else max(current - 1, self.low)
