"""After FIXED the whole question is asked again: that of the run, of the decoder where it is now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands.replay import asked_again
from harness.protocol import Settings

ASKED = ("verify", "--implementation", "mine:factory", "--checkout", "OLD", "--labels=0,1", "--draft-len", "5")


def case(*command: str) -> Any:
    record = SimpleNamespace(command=command, recipe={"implementation": "mine:factory", "timeout": "9.0"})
    return SimpleNamespace(record=record, settings=Settings(5, options=(("checkout", "NEW"), ("gamma", "2"))))


@pytest.mark.parametrize(
    "outputs",
    [
        (),
        ("--run", "a b.db", "--quiet"),
        ("--json=r.json", "--html", "p.html", "--resume"),
        ("--certificate", "c.json", "--key=k.pem", "--challenged", "4"),  # that run's stays as it is
    ],
)
def test_what_the_run_asked_is_asked_where_its_code_is_now(outputs: tuple[str, ...]):
    wanted = "verify --implementation mine:factory --checkout NEW --labels 0,1 --draft-len 5"
    assert asked_again(case(*ASKED, *outputs)) == f"sdvar-harness {wanted}"


def test_of_another_command_the_decoder_and_its_options_at_least_are_asked():
    wanted = "--implementation mine:factory --timeout 9.0 --checkout NEW --option gamma=2"
    assert asked_again(case("-m", "pytest")) == f"sdvar-harness verify {wanted}"
