"""The image that a published sampler returns, held to its own f_hat.

Promise: whatever is returned, the answer is None or one `ImageError`: a defect of component `image`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import ImageError
from harness.models.pair import ModelPair

PIXEL_ERROR = 1e-4  # float32 moves a pixel by about 1e-6, in whatever batch it is decoded; a step of 8 bits is 4e-3


def check_image(image: object, f_hat_BCPP: Tensor, models: ModelPair) -> None:
    """Require the picture of a latent map.

    Args:
        image: what the sampler returned; (B,3,H,W), floating point, in [0,1].
        f_hat_BCPP: the decode's last f_hat. One of another form, or with NaN, is the judge's.
        models: whose VQ-VAE makes the image that is due.

    Raises:
        ImageError: it is something else; one line.
    """
    C, P = models.target.config.C, models.pyramid.P
    if f_hat_BCPP.shape[1:] != (C, P, P) or not bool(torch.isfinite(f_hat_BCPP).all()):
        return
    if not isinstance(image, Tensor):
        raise ImageError(f"a {type(image).__name__} is returned, not an image (B,3,H,W)")
    with torch.no_grad():
        due_B3HW = models.vae.decode(f_hat_BCPP).double()
    if image.shape != due_B3HW.shape or not image.is_floating_point():
        kind = f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}"
        raise ImageError(f"the image is {kind}, not floating point {tuple(due_B3HW.shape)}")
    image_B3HW = image.detach().to(due_B3HW)
    far_B = (image_B3HW - due_B3HW).abs().flatten(1).amax(1).nan_to_num(torch.inf)
    wrong = torch.nonzero(far_B > PIXEL_ERROR).flatten().tolist()
    if not wrong:
        return
    b = wrong[0]
    others = (due_B3HW - image_B3HW[b]).abs().flatten(1).amax(1)  # NaN compares False
    low, high = float(image_B3HW[b].min()), float(image_B3HW[b].max())
    why = ""
    if bool((others <= PIXEL_ERROR).any()):
        why = f": it is image {int((others <= PIXEL_ERROR).nonzero()[0])}"
    elif low < -PIXEL_ERROR or high > 1 + PIXEL_ERROR:
        why = f": its pixels are {low:.3g}..{high:.3g}, not in 0..1"
    raise ImageError(f"image {b} is not that of its f_hat, by up to {float(far_B[b]):.3g}{why}")
