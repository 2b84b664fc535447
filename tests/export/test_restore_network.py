"""The restore network: identity at first, any multiple of its stride, and a pinned layer table."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from export.analysis import count_parameters, effective_reach_px, mac_per_pixel, overlap_px  # noqa: E402
from export.leaves import dead_leaves  # noqa: E402
from export.networks.generator import FrameNet  # noqa: E402
from export.networks.restore import RestoreNet, RestoreNetConfig, Whitening  # noqa: E402

SMALL = RestoreNetConfig(unshuffle=2, widths=(8, 16), blocks=(1, 1))


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_network_starts_as_the_identity() -> None:
    blurred = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(RestoreNet()(blurred), blurred)


def test_frames_pass_an_untrained_network_bit_by_bit() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    assert torch.equal(FrameNet(RestoreNet())(levels), levels)


@pytest.mark.parametrize("config", [RestoreNetConfig(), SMALL])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_any_multiple_of_the_stride_keeps_its_size(config: RestoreNetConfig, strides: tuple[int, int]) -> None:
    height, width = (config.stride * count for count in strides)
    assert FrameNet(RestoreNet(config))(frames(2, height, width)).shape == (2, height, width, 3)


def test_a_correction_is_added_and_clipped() -> None:
    network = RestoreNet(SMALL)
    torch.nn.init.constant_(network.tail.bias, 10 / 255)
    batch = frames(1, 8, 8)
    assert torch.equal(FrameNet(network)(batch), (batch.int() + 10).clamp(max=255).to(torch.uint8))


def test_the_layer_table_is_the_one_that_checkpoints_hold() -> None:
    table = {name: tuple(tensor.shape) for name, tensor in RestoreNet(SMALL).state_dict().items()}
    assert {name: shape for name, shape in table.items() if name.endswith("weight")} == {
        "head.weight": (8, 12, 3, 3),
        "down.0.weight": (16, 8, 3, 3),
        "encode.0.0.first.weight": (16, 16, 3, 3),
        "encode.0.0.second.weight": (16, 16, 3, 3),
        "up.0.0.weight": (32, 16, 1, 1),
        "decode.0.0.first.weight": (8, 8, 3, 3),
        "decode.0.0.second.weight": (8, 8, 3, 3),
        "tail.weight": (12, 8, 3, 3),
    }


def test_parameters_and_operations_are_counted_as_by_hand() -> None:
    fine, coarse = 1 / 4, 1 / 16  # a level's pixels for each pixel of the frame
    by_hand = fine * 9 * (12 * 8 + 2 * 8 * 8 + 8 * 12) + coarse * (9 * (8 * 16 + 2 * 16 * 16) + 16 * 32)
    assert mac_per_pixel(RestoreNet(SMALL)) == by_hand
    weights = 9 * (12 * 8 + 2 * 8 * 8 + 8 * 12 + 8 * 16 + 2 * 16 * 16) + 16 * 32
    biases = 8 + 16 + 16 + 16 + 32 + 8 + 8 + 12
    assert count_parameters(RestoreNet(SMALL)) == weights + biases


def test_levels_between_may_do_less_on_the_way_down() -> None:
    config = RestoreNetConfig(unshuffle=2, widths=(8, 16, 24), blocks=(1, 2, 1), blocks_down=(0,))
    network = RestoreNet(config)
    assert [len(level) for level in network.encode] == [0, 1]
    assert [len(level) for level in network.decode] == [1, 2]
    assert FrameNet(network)(frames(1, config.stride, config.stride)).shape == (1, config.stride, config.stride, 3)
    alike = RestoreNet(config.model_copy(update={"blocks_down": None}))
    assert [len(level) for level in alike.encode] == [2, 1]


def test_a_network_that_changes_nothing_looks_nowhere() -> None:
    network = RestoreNet(SMALL)
    assert effective_reach_px(network, side=64, samples=2) == 0
    assert overlap_px(network) == SMALL.stride


def test_a_network_looks_no_further_than_its_kernels_allow() -> None:
    network = RestoreNet(SMALL)
    torch.nn.init.normal_(network.tail.weight)
    # Fine level: head, two of a block, tail; coarse: down, two of a block; one pixel each of 2 and 4 px.
    assert 2 < effective_reach_px(network, side=64, samples=2) <= 4 * 2 + 3 * 4 + 3


def test_restoring_a_part_far_from_its_rim_equals_restoring_the_whole() -> None:
    torch.manual_seed(0)
    network = RestoreNet(SMALL)
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    whole = frames(1, 96, 96)
    reach = 24
    part = FrameNet(network)(whole[:, :64])[:, : 64 - reach]
    assert np.array_equal(part.numpy(), FrameNet(network)(whole)[:, : 64 - reach].numpy())


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"widths": (8, 16), "blocks": (1,)}, "blocks"),
        ({"widths": (8, 16, 32), "blocks": (1, 1)}, "blocks must be one per width"),
        ({"widths": (8, 0), "blocks": (1, 1)}, "widths"),
        (
            {"widths": (8, 8, 8), "blocks": (1, 1, 1), "blocks_down": (1, 1)},
            "blocks_down must be one per level between",
        ),
        ({"unshuffle": 0}, "unshuffle"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_size_that_makes_no_network_is_refused(settings: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        RestoreNetConfig.model_validate(settings)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_whitening_loses_nothing(factor: int) -> None:
    matrix = Whitening(factor).weight[:, :, 0, 0].double()
    directions = matrix / matrix.norm(dim=1, keepdim=True)
    torch.testing.assert_close(directions @ directions.T, torch.eye(3 * factor**2).double(), atol=1e-5, rtol=0)


def test_whitened_natural_pictures_have_no_strong_channel() -> None:
    scene = torch.from_numpy(dead_leaves(256, 256, np.random.default_rng(0))).permute(2, 0, 1)[None] / 255
    unshuffled = torch.nn.functional.pixel_unshuffle(scene - 0.5, 4)
    plain, white = (x.std(dim=(0, 2, 3)) for x in (unshuffled, Whitening(4)(unshuffled)))
    assert white.max() < 10
    assert white.min() > 0.05
    assert plain.min() > 0.1


def test_folding_changes_nothing_but_the_work() -> None:
    torch.manual_seed(0)
    network = RestoreNet(SMALL)
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    blurred = torch.rand(1, 3, 32, 32)
    before = network(blurred)
    network.fold()
    network.fold()
    torch.testing.assert_close(network(blurred), before, atol=1e-4, rtol=0)
    assert not isinstance(network.whitening, Whitening)
