"""What training makes small: distances between pictures, and what generators and discriminators play for.

Knows tensors only; nothing of networks, optimizers or schedules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RestoreLoss(nn.Module):
    """Charbonnier distance, plus the L1 distance of the spectra, which pulls at what blur removes.

    Weighted as in MIMO-UNet (Cho et al., arXiv 2108.05054): `spectral_weight` times a mean over the spectrum
    of an orthonormal transform.
    """

    def __init__(self, spectral_weight: float, epsilon: float = 1e-3) -> None:
        super().__init__()
        self.spectral_weight, self.epsilon = spectral_weight, epsilon

    def forward(self, restored: Tensor, sharp: Tensor) -> Tensor:
        difference = restored.float() - sharp
        loss = torch.sqrt(difference.square() + self.epsilon**2).mean()
        if self.spectral_weight:
            spectrum = torch.fft.rfft2(difference, norm="ortho")
            loss = loss + self.spectral_weight * torch.view_as_real(spectrum).abs().mean()
        return loss


def l1(restored: Tensor, sharp: Tensor) -> Tensor:
    """2 mean |restored - sharp|; the second term of pix2pix (arXiv 1611.07004, equation 3).

    Twice, because the papers' pictures go from -1 to 1 and ours from 0 to 1: so their weights hold here.
    """
    return 2 * (restored.float() - sharp).abs().mean()


def l2(restored: Tensor, sharp: Tensor) -> Tensor:
    """Mean (restored - sharp)^2, which the PSNR is made of."""
    return (restored.float() - sharp).square().mean()


def cgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(BCE(real, 1) + BCE(fake, 0)) / 2 of logits; the discriminator of pix2pix (Isola et al., arXiv 1611.07004).

    Goodfellow's game (arXiv 1406.2661), halved as section 3.3 says, to slow the discriminator down. What makes
    it conditional is that the discriminator sees the blurred picture beside the sharp one.
    """
    # -log(sigmoid(x)) is softplus(-x), and -log(1 - sigmoid(x)) is softplus(x): exact for large logits too.
    return (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()) / 2


def cgan_generator(fake: Tensor) -> Tensor:
    """BCE(fake, 1) of logits: maximizes log D(fake) instead of minimizing log(1 - D(fake)), which would saturate.

    The generator of pix2pix (Isola et al., arXiv 1611.07004, section 3.3).
    """
    return F.softplus(-fake.float()).mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """((D(real) - 1)^2 + D(fake)^2) / 2, each a mean; the discriminator of CycleGAN (Zhu et al., arXiv 1703.10593).

    The least squares of LSGAN (Mao et al., arXiv 1611.04076); halved, as CycleGAN's appendix 7.1 says.
    """
    return ((real.float() - 1).square().mean() + fake.float().square().mean()) / 2


def lsgan_generator(fake: Tensor) -> Tensor:
    """(D(fake) - 1)^2, a mean; the generator of CycleGAN (Zhu et al., arXiv 1703.10593, section 4)."""
    return (fake.float() - 1).square().mean()


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """D(fake) - D(real), means; the critic of DualGAN (Yi et al., arXiv 1704.02510, equations 1 and 2).

    Minus an estimate of the earth mover's distance (WGAN, Arjovsky et al., arXiv 1701.07875), as far as
    `clip_weights` keeps the critic from growing steep.
    """
    return fake.float().mean() - real.float().mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """-D(fake), a mean; the last terms of DualGAN's generators (Yi et al., arXiv 1704.02510, equation 3)."""
    return -fake.float().mean()


def clip_weights(critic: nn.Module, limit: float) -> None:
    """Bring every parameter of `critic` into [-limit, limit]; due after each of its steps.

    The Lipschitz bound of WGAN (Arjovsky et al., arXiv 1701.07875, algorithm 1).
    """
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-limit, limit)
