"""The networks of the papers: their layer tables, sizes, how far they look, and that engines compute the same."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import openvino as ov
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from export.networks.generator import FrameNet  # noqa: E402
from export.networks.img2img import Img2ImgConfig, Img2ImgNet  # noqa: E402
from export.networks.layers import InstanceNorm  # noqa: E402
from export.networks.patchgan import PatchDiscriminator, PatchDiscriminatorConfig  # noqa: E402
from export.networks.resnet import MirroredBlock, ResNetConfig, ResNetGenerator  # noqa: E402
from export.networks.unet import UNet, UNetConfig  # noqa: E402

SMALL: dict[str, Callable[[], nn.Module]] = {
    "img2img": lambda: Img2ImgNet(Img2ImgConfig(widths=(4, 6, 8, 8))),
    "unet": lambda: UNet(UNetConfig(width=4, downs=3)),
    "unet instance": lambda: UNet(UNetConfig(width=4, downs=3, norm="instance")),
    "resnet": lambda: ResNetGenerator(ResNetConfig(width=4, blocks=2)),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    """Each generator, small, with norms that have seen pictures and weights that let them through."""
    torch.manual_seed(0)
    network = SMALL[request.param]()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter)
            else:
                parameter += 0.1 * torch.randn_like(parameter)
        for _ in range(3):
            network(torch.rand(2, 3, 32, 48))
    return network.eval()


def of_default_size(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):  # shapes without numbers: no time, no memory
        return make()


def layers(network: nn.Module) -> list[tuple[object, ...]]:
    """Its leaves in order: convolutions with (in, out, kernel, stride), norms with their width, activations."""
    table: list[tuple[object, ...]] = []
    for leaf in network.modules():
        name = type(leaf).__name__
        if isinstance(leaf, nn.Conv2d | nn.ConvTranspose2d):
            (kernel, same_kernel), (stride, same_stride) = leaf.kernel_size, leaf.stride
            assert (kernel, stride) == (same_kernel, same_stride)
            table.append((name, leaf.in_channels, leaf.out_channels, kernel, stride))
        elif isinstance(leaf, nn.BatchNorm2d | InstanceNorm):
            table.append((name, *leaf.weight.shape))
        elif isinstance(leaf, nn.LeakyReLU):
            table.append((name, leaf.negative_slope))
        elif isinstance(leaf, nn.Dropout):
            table.append((name, leaf.p))
        elif not list(leaf.children()):
            table.append((name,))
    return table


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


LEAKY = ("LeakyReLU", 0.2)
RELU = ("ReLU",)
TANH = ("Tanh",)


def test_img2img_is_the_discriminator_and_the_generator_of_dcgan() -> None:
    network = of_default_size(Img2ImgNet)
    assert layers(network) == [
        *[("Conv2d", 3, 64, 5, 2), LEAKY],
        *[("Conv2d", 64, 128, 5, 2), ("BatchNorm2d", 128), LEAKY],
        *[("Conv2d", 128, 256, 5, 2), ("BatchNorm2d", 256), LEAKY],
        *[("Conv2d", 256, 512, 5, 2), ("BatchNorm2d", 512), LEAKY],
        *[("ConvTranspose2d", 512, 256, 5, 2), ("BatchNorm2d", 256), RELU],
        *[("ConvTranspose2d", 256, 128, 5, 2), ("BatchNorm2d", 128), RELU],
        *[("ConvTranspose2d", 128, 64, 5, 2), ("BatchNorm2d", 64), RELU],
        *[("ConvTranspose2d", 64, 3, 5, 2), TANH],
    ]
    weights = 2 * 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512)
    norms = 2 * (128 + 256 + 512 + 256 + 128 + 64)
    assert parameters(network) == weights + norms + 64 + 3


def test_unet_is_the_generator_of_pix2pix() -> None:
    network = of_default_size(UNet)
    dropped = ("Dropout", 0.5)
    down = [("Conv2d", 3, 64, 4, 2)]
    for narrow, wide in [(64, 128), (128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]:
        down += [LEAKY, ("Conv2d", narrow, wide, 4, 2), ("BatchNorm2d", wide)]
    down += [LEAKY, ("Conv2d", 512, 512, 4, 2)]  # the innermost: no norm
    assert layers(network) == [
        *down,
        *[RELU, ("ConvTranspose2d", 512, 512, 4, 2), ("BatchNorm2d", 512), dropped],
        *[RELU, ("ConvTranspose2d", 1024, 512, 4, 2), ("BatchNorm2d", 512), dropped],
        *[RELU, ("ConvTranspose2d", 1024, 512, 4, 2), ("BatchNorm2d", 512), dropped],
        *[RELU, ("ConvTranspose2d", 1024, 512, 4, 2), ("BatchNorm2d", 512)],
        *[RELU, ("ConvTranspose2d", 1024, 256, 4, 2), ("BatchNorm2d", 256)],
        *[RELU, ("ConvTranspose2d", 512, 128, 4, 2), ("BatchNorm2d", 128)],
        *[RELU, ("ConvTranspose2d", 256, 64, 4, 2), ("BatchNorm2d", 64)],
        *[RELU, ("ConvTranspose2d", 128, 3, 4, 2), TANH],
    ]
    encoder = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 4 * 512 * 512)
    decoder = 16 * (512 * 512 + 3 * 1024 * 512 + 1024 * 256 + 512 * 128 + 256 * 64 + 128 * 3)
    norms = 2 * (128 + 256 + 4 * 512) + 2 * (4 * 512 + 256 + 128 + 64)
    assert parameters(network) == encoder + decoder + norms + 64 + 512 + 3


def test_a_unet_for_64_pixel_crops_halves_six_times() -> None:
    network = of_default_size(lambda: UNet(UNetConfig(downs=6)))
    assert network.stride == 64
    assert [row[2] for row in layers(network) if row[0] == "Conv2d"] == [64, 128, 256, 512, 512, 512]
    assert [row[2] for row in layers(network) if row[0] == "ConvTranspose2d"] == [512, 512, 256, 128, 64, 3]
    assert sum(row[0] == "Dropout" for row in layers(network)) == 3


def test_a_unet_without_dropout_is_never_random() -> None:
    network = UNet(UNetConfig(width=2, downs=3, dropout=0))
    assert not any(isinstance(leaf, nn.Dropout) for leaf in network.modules())


def test_resnet_is_the_generator_of_cyclegan() -> None:
    network = of_default_size(ResNetGenerator)
    convolved = [("Conv2d", 256, 256, 3, 1), ("InstanceNorm", 256)]
    assert layers(network) == [
        *[("Conv2d", 3, 64, 7, 1), ("InstanceNorm", 64), RELU],
        *[("Conv2d", 64, 128, 3, 2), ("InstanceNorm", 128), RELU],
        *[("Conv2d", 128, 256, 3, 2), ("InstanceNorm", 256), RELU],
        *9 * [*convolved, RELU, *convolved],
        *[("ConvTranspose2d", 256, 128, 3, 2), ("InstanceNorm", 128), RELU],
        *[("ConvTranspose2d", 128, 64, 3, 2), ("InstanceNorm", 64), RELU],
        *[("Conv2d", 64, 3, 7, 1), TANH],
    ]
    ends, steps, blocks = 2 * 49 * 3 * 64, 2 * 9 * (64 * 128 + 128 * 256), 9 * 2 * 9 * 256 * 256
    norms = 2 * (64 + 128 + 256 + 9 * 2 * 256 + 128 + 64)
    assert parameters(network) == ends + steps + blocks + norms + 3


def test_resnet_mirrors_borders_in_blocks_and_at_both_ends() -> None:
    network = ResNetGenerator(ResNetConfig(width=2, blocks=1))
    modes = [layer.padding_mode for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert modes == ["reflect", "zeros", "zeros", "reflect", "reflect", "reflect"]


def test_a_residual_block_adds_to_what_it_is_given() -> None:
    block = MirroredBlock(4)
    nn.init.zeros_(block.branch[-1].weight)
    nn.init.constant_(block.branch[-1].bias, -2.0)
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(block(x), x - 2)


@pytest.mark.parametrize(("norm", "name"), [("batch", "BatchNorm2d"), ("instance", "InstanceNorm")])
def test_patchgan_is_the_70_pixel_discriminator_of_pix2pix(norm: str, name: str) -> None:
    config = PatchDiscriminatorConfig.model_validate({"norm": norm})
    network = of_default_size(lambda: PatchDiscriminator(config, channels_in=6))
    assert layers(network) == [
        *[("Conv2d", 6, 64, 4, 2), LEAKY],
        *[("Conv2d", 64, 128, 4, 2), (name, 128), LEAKY],
        *[("Conv2d", 128, 256, 4, 2), (name, 256), LEAKY],
        *[("Conv2d", 256, 512, 4, 1), (name, 512), LEAKY],
        ("Conv2d", 512, 1, 4, 1),
    ]
    weights = 16 * (6 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert parameters(network) == weights + 2 * (128 + 256 + 512) + 64 + 1


def test_a_logit_sees_70_by_70_pixels() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(PatchDiscriminatorConfig(width=2)).eval()
    pictures = torch.rand(1, 3, 160, 160, requires_grad=True)
    network(pictures)[0, 0, 9, 9].backward()
    assert pictures.grad is not None
    rows, columns = pictures.grad[0].abs().sum(0).nonzero().unbind(1)
    first = 9 * 8 - (1 + 2 + 4 + 8 + 8)  # nine steps of 8 pixels in, less the padding of five layers
    assert (rows.min(), rows.max()) == (first, first + 69)
    assert (columns.min(), columns.max()) == (first, first + 69)


@pytest.mark.parametrize(("side", "logits"), [(256, 30), (64, 6), (24, 1)])
@pytest.mark.parametrize("channels_in", [3, 6])
def test_a_discriminator_judges_patches_eight_pixels_apart(side: int, logits: int, channels_in: int) -> None:
    network = PatchDiscriminator(PatchDiscriminatorConfig(width=1), channels_in=channels_in)
    assert network(torch.rand(2, channels_in, side, side)).shape == (2, 1, logits, logits)


def test_logits_are_not_squashed() -> None:
    network = PatchDiscriminator(PatchDiscriminatorConfig(width=1))
    nn.init.constant_(network.layers[-1].bias, -7.0)
    assert network(torch.rand(1, 3, 64, 64)).max() < -5


def test_first_weights_are_those_of_dcgan() -> None:
    torch.manual_seed(0)
    network = Img2ImgNet(Img2ImgConfig(widths=(64, 128)))
    weights, scales = network.encoder[2].weight.detach(), network.encoder[3].weight.detach()
    assert (weights.mean().item(), weights.std().item()) == pytest.approx((0, 0.02), abs=4e-4)
    assert (scales.mean().item(), scales.std().item()) == pytest.approx((1, 0.02), abs=6e-3)
    assert not network.encoder[0].bias.any()


def test_instance_norm_is_that_of_torch() -> None:
    norm, reference = InstanceNorm(3), nn.InstanceNorm2d(3, affine=True)
    with torch.no_grad():
        reference.weight.copy_(norm.weight.normal_())
        reference.bias.copy_(norm.bias.normal_())
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(norm(x), reference(x))
    torch.testing.assert_close(norm.eval()(x), reference(x))


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
def test_any_multiple_of_the_stride_keeps_its_size(small: nn.Module, strides: tuple[int, int]) -> None:
    height, width = (small.stride * count for count in strides)
    assert small(torch.rand(2, 3, height, width)).shape == (2, 3, height, width)
    frames = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    assert FrameNet(small)(frames).shape == (1, height, width, 3)


def test_pictures_stay_between_black_and_white(small: nn.Module) -> None:
    restored = small(torch.rand(1, 3, 48, 32).round())
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert restored.std() > 0.01


def test_levels_are_pictures_times_255(small: nn.Module) -> None:
    blurred = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(small.restore_levels(blurred * 255), small(blurred) * 255, atol=0.05, rtol=0)


def test_a_restored_picture_is_the_same_every_time(small: nn.Module) -> None:
    blurred = torch.rand(1, 3, 32, 32)
    assert torch.equal(small(blurred), small(blurred))


def test_a_frame_does_not_depend_on_the_others_of_its_batch(small: nn.Module) -> None:
    blurred = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(small(blurred)[:1], small(blurred[:1]), atol=1e-4, rtol=0)


def test_only_what_says_so_looks_at_the_whole_frame(small: nn.Module) -> None:
    blurred = torch.rand(1, 3, 32, 512)
    changed = blurred.clone()
    changed[..., -16:] = 1 - changed[..., -16:]
    same = torch.equal(small(blurred)[..., :64], small(changed)[..., :64])
    assert same is not small.whole_frame


def test_folding_leaves_no_batch_norm_and_changes_nothing(small: nn.Module) -> None:
    blurred = torch.rand(1, 3, 32, 32)
    before = small(blurred)
    small.fold()
    small.fold()
    torch.testing.assert_close(small(blurred), before, atol=1e-4, rtol=0)
    assert not any(isinstance(leaf, nn.BatchNorm2d) for leaf in small.modules())


@pytest.mark.parametrize("folded", [False, True])
def test_an_engine_computes_the_same_at_any_size(small: nn.Module, folded: bool) -> None:
    if folded:
        small.fold()
    buffer = io.BytesIO()
    free = {0: "N", 2: "H", 3: "W"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that needs no onnxscript says so of itself
        # Instance norm has no other mode; and the sizes of mirrored borders are left for the engine to fold.
        warnings.filterwarnings("ignore", ".*operator 'instance_norm' is set to train=True")
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1")
        torch.onnx.export(
            small,
            (torch.rand(1, 3, 32, 32),),
            buffer,
            input_names=["blurred"],
            output_names=["restored"],
            dynamic_axes={"blurred": free, "restored": free},
            opset_version=18,
            dynamo=False,
        )
    core = ov.Core()
    graph = core.compile_model(core.read_model(buffer.getvalue()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in [(1, 3, 48, 64), (2, 3, 32, 16)]:
        blurred = torch.rand(shape)
        np.testing.assert_allclose(graph(blurred.numpy())[0], small(blurred).detach().numpy(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("config", "settings", "rule"),
    [
        (Img2ImgConfig, {"widths": ()}, "widths"),
        (Img2ImgConfig, {"widths": (64, 0)}, "widths"),
        (UNetConfig, {"downs": 2}, "downs"),
        (UNetConfig, {"norm": "layer"}, "norm"),
        (UNetConfig, {"dropout": 1}, "dropout"),
        (ResNetConfig, {"blocks": 0}, "blocks"),
        (PatchDiscriminatorConfig, {"width": 0}, "width"),
        (PatchDiscriminatorConfig, {"depth": 3}, "depth"),
    ],
)
def test_a_size_that_makes_no_network_is_refused(
    config: type[UNetConfig], settings: dict[str, object], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        config.model_validate(settings)
