"""What training scripts share: weights that learn, their moving average, and all that going on needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DECAYS, AVERAGE, WARM = (0.9, 0.99), 0.999, 100  # of AdamW; of the moving average at most; steps until the whole rate


class Learner:
    """Weights in training, float32, their moving average, the optimiser, and where it stands.

    `generators` are those that it draws from, by name: their states are a part of its own.
    """

    def __init__(self, weights: Mapping[str, Tensor], rate: float, generators: Mapping[str, torch.Generator]) -> None:
        self.rate, self.generators, self.step, self.seconds = rate, generators, 0, 0.0
        made = {name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}
        self.weights = {name: weight.requires_grad_() for name, weight in made.items()}
        self.average = {name: weight.detach().clone() for name, weight in made.items()}
        fused = any(weight.is_cuda for weight in made.values())
        self.optimiser = torch.optim.AdamW(self.weights.values(), rate, DECAYS, fused=fused)

    def state(self) -> dict[str, Any]:
        """Return all that going on needs."""
        return {
            "step": self.step, "seconds": self.seconds,
            "weights": {name: weight.detach() for name, weight in self.weights.items()}, "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
        }  # fmt: skip

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Take up a state. Effects: on all of this."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name].cpu())
        self.step, self.seconds = state["step"], state["seconds"]

    def learn(self, loss: Tensor, done: float) -> None:
        """Take one step down a loss; the rate is a cosine of `done`, the share of the training that is over, to 0 at 1.

        Effects: on weights, average, optimiser and step.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, (self.step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * done))
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimiser.step()
        self.step += 1
        share = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - share)
