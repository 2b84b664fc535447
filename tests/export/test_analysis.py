"""What a network costs and how far it looks, against networks whose answer is plain."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from export.analysis import count_parameters, effective_reach_px, mac_per_pixel, overlap_px  # noqa: E402


class Layers(nn.Sequential):
    """Any layers as a generator; `residual` adds the input to what they give."""

    def __init__(self, *layers: nn.Module, stride: int = 1, residual: bool = False, whole_frame: bool = False) -> None:
        super().__init__(*layers)
        self.stride, self.residual, self.whole_frame = stride, residual, whole_frame

    def forward(self, blurred: Tensor) -> Tensor:
        given: Tensor = super().forward(blurred)
        return blurred + given if self.residual else given


class Deep(Layers):
    """Adds the mean of each 256x256 px to a pixel."""

    def forward(self, blurred: Tensor) -> Tensor:
        return blurred + F.interpolate(F.avg_pool2d(blurred, 256), scale_factor=256.0)


def box(side: int) -> nn.Conv2d:
    """A mean over `side` x `side` px."""
    convolution = nn.Conv2d(3, 3, side, padding=side // 2, groups=3, bias=False)
    nn.init.constant_(convolution.weight, 1 / side**2)
    return convolution


def test_transposed_convolutions_count_by_what_they_take() -> None:
    net = Layers(
        nn.Conv2d(3, 8, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Conv2d(6, 3, 1),
        stride=2,
    ).eval()
    assert mac_per_pixel(net) == 3 * 8 * 16 / 4 + 8 * 3 * 9 / 4 + 6 * 3
    assert count_parameters(net) == 3 * 8 * 16 + 2 * 8 + 8 * 3 * 9 + 6 + 6 * 3 + 3


@pytest.mark.parametrize("residual", [False, True])
def test_a_box_is_seen_to_its_edge_whether_or_not_the_input_is_added(residual: bool) -> None:
    assert effective_reach_px(Layers(box(9), residual=residual), side=64, samples=2) == 4


def test_a_network_that_gives_its_input_back_looks_nowhere() -> None:
    assert effective_reach_px(Layers(nn.Identity()), side=64, samples=2) == 0


def test_a_network_of_a_great_stride_is_measured_on_two_strides_and_overlaps_by_whole_ones() -> None:
    net = Deep(stride=256)
    assert 100 < effective_reach_px(net, samples=2) < 256
    assert overlap_px(net) == 256


def test_what_is_never_tiled_needs_no_overlap() -> None:
    net = Layers(nn.InstanceNorm2d(3), stride=4, whole_frame=True)
    assert overlap_px(net) == 0
