"""What a run has to do: tasks, each one batch under some settings.

Promise: a plan is data. Whoever takes its tasks, in whatever order, the result is put together in the plan's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.errors import InputError
from harness.protocol import Request, Settings


@dataclass(frozen=True)
class Task:
    """One batch, to be drawn by the reference once and by the decoder under every setting."""

    number: int  # place in the plan
    request: Request  # what is drawn
    settings: tuple[int, ...]  # indices of the plan's settings

    @property
    def images(self) -> int:
        """Decoded images: those of the request, once a setting."""
        return self.request.B * len(self.settings)


@dataclass(frozen=True)
class Plan:
    """All that a run has to do."""

    settings: tuple[Settings, ...]  # those of all tasks
    tasks: tuple[Task, ...]  # in the order of the result
    # by setting, the `draft_noise` of the draft that it meets (`models.pair.close_pair`); None = the pair's own, and
    # so is all of an empty tuple
    drafts: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.drafts:
            object.__setattr__(self, "drafts", (None,) * len(self.settings))

    @classmethod
    def of(
        cls, settings: Sequence[Settings], requests: Sequence[Request], drafts: tuple[float | None, ...] = ()
    ) -> Plan:
        """Return the plan in which every setting, with its draft, meets every request."""
        every = tuple(range(len(settings)))
        return cls(tuple(settings), tuple(Task(k, request, every) for k, request in enumerate(requests)), drafts)

    def narrowed(self, change: Callable[[Settings], Settings | None]) -> Plan:
        """Return the plan with other settings: None drops one, and those that become equal under one draft are one."""
        changed = [(change(setting), draft) for setting, draft in zip(self.settings, self.drafts, strict=True)]
        left = list(dict.fromkeys((setting, draft) for setting, draft in changed if setting is not None))
        number = {old: left.index((each, draft)) for old, (each, draft) in enumerate(changed) if each is not None}
        tasks = [
            replace(task, settings=tuple(dict.fromkeys(number[old] for old in task.settings if old in number)))
            for task in self.tasks
        ]
        settings, drafts = tuple(setting for setting, _ in left), tuple(draft for _, draft in left)
        return Plan(settings, tuple(task for task in tasks if task.settings), drafts)

    def lengthless(self) -> Plan:
        """Return the plan of a decoder that reads neither draft length nor bonus."""
        return self.narrowed(lambda setting: replace(setting, draft_len="", bonus=False, policy=""))

    @property
    def images(self) -> int:
        """Decoded images."""
        return sum(task.images for task in self.tasks)

    @property
    def decodes(self) -> int:
        """Decoded batches: every task, once a setting."""
        return sum(len(task.settings) for task in self.tasks)

    @property
    def most(self) -> int:
        """Images of the largest batch."""
        return max(task.request.B for task in self.tasks)

    def check(self) -> None:
        """Refuse a plan that does nothing. Raises `InputError`."""
        if not self.tasks:
            raise InputError("requests", [], "name nothing to draw", "pass at least one request")
