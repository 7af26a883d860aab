"""What everybody needs of a network's sizes and of an autoencoder, of whatever family.

Promise: protocols alone; nothing here computes.
"""

from collections.abc import Mapping
from typing import Protocol, Self

import torch
from torch import Tensor

from harness.protocol import ScalePyramid, Sizes


class NetworkConfig(Sizes, Protocol):
    """Sizes of one network of any family, in the letters of the spec page; `depth` layers are cached.

    An image's latent map has shape `latent` (C,h,w), a raw input `raw` channels.
    """

    @property
    def depth(self) -> int: ...

    @property
    def D(self) -> int: ...

    @property
    def H(self) -> int: ...

    @property
    def C(self) -> int: ...

    @property
    def latent(self) -> tuple[int, int, int]: ...

    @property
    def raw(self) -> int: ...


class Codebook(Protocol):
    """Codes of tokens; `tensors` is all that f_hat depends on besides tokens, by name."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    def codes(self, idx_Bl: Tensor, h: int, w: int | None = None) -> Tensor:
        """Return the codes (B,C,h,w) of one scale's draws; a square where there is no `w`."""


class CodecConfig(Protocol):
    """Sizes of an autoencoder: values of a draw, channels of the latent map."""

    @property
    def V(self) -> int: ...

    @property
    def C(self) -> int: ...


class Codec(Protocol):
    """What turns tokens into a latent map of its dtype, and a latent map into an image: sizes, weights and codes."""

    @property
    def config(self) -> CodecConfig: ...

    @property
    def weights(self) -> Mapping[str, Tensor]: ...

    @property
    def quantizer(self) -> Codebook: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def check_for(self, pyramid: ScalePyramid) -> None:
        """Refuse scales that it does not fit. Raises `InputError`."""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Return a copy with the weights on `device` in `dtype`."""

    def decode(self, f_hat_BCPP: Tensor) -> Tensor:
        """Return the images (B,3,h,w) in [0, 1] of latent maps."""
