"""Hold earlier generated pictures, so that a discriminator does not forget what it has seen.

Knows tensors only; whoever calls brings the random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


class PicturePool:
    """The last generated pictures, a mixture of which trains the discriminator.

    The history of Shrivastava et al. (arXiv 1612.07828, section 2.3) as CycleGAN keeps it (Zhu et al., arXiv
    1703.10593, section 4): `size` pictures, one at a time. A size of 0 passes everything through.
    """

    def __init__(self, size: int = 50) -> None:
        if size < 0:
            raise ValueError(f"size must be at least 0, got {size}")
        self._size = size
        self._held: list[Tensor] = []  # each (C, H, W)

    def exchange(self, pictures: Tensor, random: torch.Generator) -> Tensor:
        """As many pictures as given, (N, C, H, W), detached.

        While the pool fills, a picture is kept and returned. Once it is full, it returns with probability 1/2,
        and otherwise takes the place of an older one, which returns instead. `random` is a generator on the
        CPU: with equal state and equal pictures the answer is equal.
        """
        chosen = []
        for picture in pictures.detach():
            if len(self._held) < self._size:
                self._held.append(picture.clone())
                chosen.append(picture)
            elif self._size and torch.rand((), generator=random) < 0.5:
                place = int(torch.randint(self._size, (), generator=random))
                chosen.append(self._held[place].to(picture))  # a loaded one may lie elsewhere
                self._held[place] = picture.clone()
            else:
                chosen.append(picture)
        return torch.stack(chosen)

    def state(self) -> dict[str, Tensor]:
        """What `load` takes to go on from here: `pictures` (K, C, H, W); nothing while the pool is empty."""
        return {"pictures": torch.stack(self._held)} if self._held else {}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`; raises ValueError for more pictures than the pool holds."""
        held = list(state["pictures"].clone()) if state else []
        if len(held) > self._size:
            raise ValueError(f"a pool of {self._size} pictures cannot take {len(held)}")
        self._held = held
