"""The plugin's options, read: which decoder, which cases, what is known to fail.

Promise: bad input is one `pytest.UsageError`, before anything is collected. Imported by every run of pytest, so all
that needs PyTorch is imported in the functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.wording import count_of

if TYPE_CHECKING:
    from harness.laws import Law, Scope, Subject

# Laws that decode many times, or one large batch, try a share of the examples.
COSTLY = {
    "acceptance.distribution": 4, "acceptance.support": 2, "acceptance.independent": 2, "masks.dependency": 2,
    "acceptance.real": 4, "reuse.alternating": 5, "reuse.labels": 4,
    "rules.edges": 2, "rules.labour": 2, "rules.length": 3, "rules.oracle": 2,
    "numbers.phi": 4, "streams.starts": 4, "rules.coin": 2, "numbers.finite": 2,
    "sensitivity.seed": 2, "sensitivity.label": 2, "sensitivity.filters": 2, "sensitivity.images": 2,
    "sensitivity.cfg": 2,
    "batch.caches": 2, "batch.neighbour": 2, "batch.permutation": 2, "batch.splitting": 2, "batch.padding": 2,
    "batch.rounds": 2,
}  # fmt: skip
EXAMPLES = 20  # cases a law, where nobody says how many
FEWEST = 4  # cases of a costly law, where so many are asked for


@dataclass(frozen=True)
class PluginOptions:
    name: str  # of the decoder's factory
    factory_options: tuple[tuple[str, str], ...]  # (name, value) for the factory, the checkout among them
    scope: Scope  # of the laws' cases
    known: Mapping[str, str]  # law or case -> why it fails
    report: Path | None = None  # where the page goes; None = nowhere
    cover: bool = False  # verify digits with the whole covering design
    sequential: bool = False  # the decoder drafts nothing

    def __str__(self) -> str:
        examples = f"{count_of(self.scope.examples, 'example')} a law"
        known = f", {len(self.known)} known to fail" if self.known else ""
        return f"{self.name}, {examples}, seed {self.scope.seed}{known}"

    @property
    def subject(self) -> Subject:
        from harness.decoders import load_factory
        from harness.laws import Subject

        return Subject(load_factory(self.name), self.factory_options)

    def scope_of(self, law: Law) -> Scope:
        """Return the scope of one law: fewer cases of a costly one; what is known to fail is not shrunk."""
        few = max(min(FEWEST, self.scope.examples), self.scope.examples // COSTLY.get(law.id, 1))
        return replace(self.scope, examples=few, shrink_s=0.0 if law.id in self.known else self.scope.shrink_s)

    @classmethod
    def read(cls, option: argparse.Namespace) -> PluginOptions:
        """Read pytest's options. Raises `InputError`, or `ValueError` for numbers that are none."""
        from harness.decoders import OWN_DECODER, load_factory, parse_factory_options
        from harness.files import check_outputs
        from harness.laws import PYRAMIDS, Scope
        from harness.numerals import wholes
        from harness.plugin._digits import read_known
        from harness.report.html import check_page

        name = option.sdvar_implementation or OWN_DECODER
        load_factory(name)
        checkout = Path(option.sdvar_checkout) if option.sdvar_checkout else None
        factory_options = parse_factory_options(checkout, option.sdvar_option, "sdvar-option", option.sdvar_stub)
        pyramids = tuple(wholes(text) for text in option.sdvar_patch_nums)
        examples = EXAMPLES if option.sdvar_examples is None else option.sdvar_examples
        scope = Scope(
            examples, option.sdvar_seed or 0, pyramids or PYRAMIDS, option.sdvar_dtype, option.sdvar_device,
            option.sdvar_shrink_seconds,
        )  # fmt: skip
        page = Path(option.sdvar_report) if option.sdvar_report else None
        check_page(page, "sdvar-report")
        report = check_outputs({"sdvar-report": page}, {}).get("sdvar-report")
        known = read_known(Path(option.sdvar_known_failures)) if option.sdvar_known_failures else {}
        return cls(name, factory_options, scope, known, report, option.sdvar_cover, option.sdvar_sequential)


OPTIONS = pytest.StashKey[PluginOptions]()
ROW = "sdvar_row"  # attribute of a test report: a `CheckRow` as JSON


def options_of(config: pytest.Config) -> PluginOptions:
    if OPTIONS not in config.stash:
        from harness.errors import InputError

        try:
            config.stash[OPTIONS] = PluginOptions.read(config.option)
        except (InputError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[OPTIONS]
