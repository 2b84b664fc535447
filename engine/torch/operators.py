"""ONNX operators in torch: a table from an operator's name to the function that computes it.

Knows what each operator means; nothing of graphs, devices or engines. Whatever it does not know in full it refuses:
an attribute that is passed over gives a wrong picture without a word.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

OPSETS = range(13, 23)
"""The versions of the operator set whose meanings are known here."""

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""ONNX's numbers of tensor types."""


class UnsupportedError(Exception):
    """Something that an operator may do and this table does not; the text is one clause."""


Compute = Callable[..., Any]
"""Gives a tensor, or a sequence of them where the node has several outputs."""


class Attributes:
    """A node's attributes. Each is taken once; `done` refuses those that nobody took."""

    def __init__(self, values: Mapping[str, Any], outputs: int) -> None:
        self._values = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        self.outputs = outputs

    def take(self, name: str, default: Any = None) -> Any:
        return self._values.pop(name, default)

    def only(self, name: str, *allowed: Any) -> Any:
        """Take one of `allowed`, the first of which is the default."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise UnsupportedError(f"{name} must be {' or '.join(map(str, allowed))}, got {value}")
        return value

    def done(self) -> None:
        if self._values:
            raise UnsupportedError(f"attribute {min(self._values)} is not known here")


@dataclass(frozen=True)
class Operator:
    """How a node is computed.

    build: makes the function of a node from its attributes.
    host: the inputs that are sizes, axes or limits; the function gets them as Python numbers or lists.
    weights: the inputs that, where constant, are kept in the precision of the whole network.
    numbers: whether a single constant number may come as a Python number.
    """

    build: Callable[[Attributes], Compute]
    host: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    numbers: bool = False


def _plain(function: Compute) -> Callable[[Attributes], Compute]:
    return lambda _: function


def _divide(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and not a.is_floating_point():
        return torch.div(a, b, rounding_mode="trunc")
    return a / b


def _cast(attributes: Attributes) -> Compute:
    attributes.only("saturate", 1)  # speaks of 8-bit floats only
    number = attributes.take("to")
    if number not in DTYPES:
        raise UnsupportedError(f"tensor type {number} is not known here")
    return lambda x: x.to(DTYPES[number])


# Convolutions and pools. Shapes are (N, C, H, W).


@dataclass(frozen=True)
class _Window:
    """Where a convolution or pool looks: strides and dilations (H, W), pads (top, left, bottom, right)."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @classmethod
    def take(cls, attributes: Attributes) -> _Window:
        auto = attributes.only("auto_pad", "NOTSET", "VALID")
        sides = {name: tuple(attributes.take(name, (1, 1))) for name in ("strides", "dilations")}
        pads = tuple(attributes.take("pads", (0, 0, 0, 0)))
        if len(pads) != 4 or any(len(side) != 2 for side in sides.values()):
            raise UnsupportedError("it must work in two dimensions")
        if auto == "VALID" and any(pads):
            raise UnsupportedError(f"auto_pad VALID must have no pads, got {pads}")
        return cls(sides["strides"], sides["dilations"], pads)

    @property
    def even(self) -> bool:
        return self.pads[:2] == self.pads[2:]

    def pad(self, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
        """What torch's own even padding leaves to do, done; and the even padding."""
        if self.even:
            return x, self.pads[:2]
        top, left, bottom, right = self.pads
        return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _kernel(attributes: Attributes) -> tuple[int, int]:
    kernel = tuple(attributes.take("kernel_shape", ()))
    if len(kernel) != 2:
        raise UnsupportedError(f"kernel_shape must have two sides, got {kernel}")
    return kernel


def _conv(attributes: Attributes) -> Compute:
    window, group = _Window.take(attributes), attributes.take("group", 1)
    attributes.take("kernel_shape")  # the weights have it

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x, padding = window.pad(x.to(weight.dtype), 0.0)
        return F.conv2d(x, weight, bias, window.strides, padding, window.dilations, group)

    return run


def _conv_transpose(attributes: Attributes) -> Compute:
    window, group = _Window.take(attributes), attributes.take("group", 1)
    attributes.take("kernel_shape")
    attributes.only("output_shape", None)
    more = attributes.take("output_padding", (0, 0))
    if not window.even:
        raise UnsupportedError(f"pads must be the same on both sides, got {window.pads}")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x.to(weight.dtype)
        padding = window.pads[:2]
        return F.conv_transpose2d(x, weight, bias, window.strides, padding, more, group, window.dilations)

    return run


def _max_pool(attributes: Attributes) -> Compute:
    window, kernel = _Window.take(attributes), _kernel(attributes)
    attributes.only("ceil_mode", 0)
    attributes.only("storage_order", 0)
    if attributes.outputs != 1:
        raise UnsupportedError("it must give no indices")

    def run(x: Tensor) -> Tensor:
        x, padding = window.pad(x, float("-inf"))
        return F.max_pool2d(x, kernel, window.strides, padding, window.dilations)

    return run


def _average_pool(attributes: Attributes) -> Compute:
    window, kernel = _Window.take(attributes), _kernel(attributes)
    attributes.only("ceil_mode", 0)
    count_pads = bool(attributes.only("count_include_pad", 0, 1))
    if window.dilations != (1, 1):
        raise UnsupportedError(f"dilations must be 1, got {window.dilations}")
    if not window.even and not count_pads:
        raise UnsupportedError(f"pads must be the same on both sides, got {window.pads}")

    def run(x: Tensor) -> Tensor:
        x, padding = window.pad(x, 0.0)
        return F.avg_pool2d(x, kernel, window.strides, padding, count_include_pad=count_pads)

    return run


# Norms and means.


def _in_float(compute: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """Statistics of half precision are taken in float: sums over a frame would lose what they add."""
    return compute(x.float(), *(parameter.float() for parameter in parameters)).to(x.dtype)


def _instance_norm(attributes: Attributes) -> Compute:
    epsilon = attributes.take("epsilon", 1e-5)

    def norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return torch.instance_norm(x, scale, bias, None, None, True, 0.0, epsilon, torch.backends.cudnn.enabled)

    return partial(_in_float, norm)


def _batch_norm(attributes: Attributes) -> Compute:
    epsilon = attributes.take("epsilon", 1e-5)
    attributes.take("momentum")  # speaks of training
    attributes.only("training_mode", 0)

    def norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)

    return partial(_in_float, norm)


def _global_average_pool(x: Tensor) -> Tensor:
    return _in_float(lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True), x)


def _reduce_mean(attributes: Attributes) -> Compute:
    keep, empty_is_none = bool(attributes.take("keepdims", 1)), attributes.take("noop_with_empty_axes", 0)
    old_axes = attributes.take("axes")  # an attribute before opset 18

    def run(x: Tensor, axes: list[int] | None = None) -> Tensor:
        axes = axes or old_axes
        if not axes and empty_is_none:
            return x
        return _in_float(lambda x: x.mean(tuple(axes or range(x.ndim)), keepdim=keep), x)

    return run


# Shapes.


def _reshape(attributes: Attributes) -> Compute:
    keep_zero = attributes.take("allowzero", 0)

    def run(x: Tensor, shape: list[int]) -> Tensor:
        if not keep_zero:
            shape = [x.shape[axis] if side == 0 else side for axis, side in enumerate(shape)]
        return x.reshape(shape)

    return run


def _transpose(attributes: Attributes) -> Compute:
    order = attributes.take("perm")
    return lambda x: x.permute(order or list(range(x.ndim))[::-1])


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    for axis in axes:
        if x.shape[axis] != 1:
            raise UnsupportedError(f"axis {axis} must be of size 1, got {tuple(x.shape)}")
    return x.squeeze(tuple(axes))


def _shape(attributes: Attributes) -> Compute:
    part = slice(attributes.take("start", 0), attributes.take("end"))
    return lambda x: torch.tensor(x.shape[part], dtype=torch.int64)


def _concat(attributes: Attributes) -> Compute:
    axis = attributes.take("axis")
    return lambda *parts: torch.cat(parts, axis)


def _split(attributes: Attributes) -> Compute:
    axis, outputs = attributes.take("axis", 0), attributes.outputs
    attributes.only("num_outputs", None, outputs)

    def run(x: Tensor, sizes: list[int] | None = None) -> Sequence[Tensor]:
        return torch.split(x, sizes or -(-x.shape[axis] // outputs), axis)

    return run


def _slice(
    x: Tensor, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> Tensor:
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        taken = range(*slice(start, end, step).indices(x.shape[axis]))  # ONNX counts and clamps as Python does
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, max(taken.start, taken.stop), step),)]
        else:
            x = x.index_select(axis, torch.tensor(taken, dtype=torch.int64, device=x.device))
    return x


def _gather(attributes: Attributes) -> Compute:
    axis = attributes.take("axis", 0)

    def run(x: Tensor, indices: int | list[int]) -> Tensor:
        if isinstance(indices, int):
            return x.select(axis, indices)
        if not all(isinstance(index, int) for index in indices):
            raise UnsupportedError("indices must be a number or a list")
        return torch.cat([x.narrow(axis, index % x.shape[axis], 1) for index in indices], axis)

    return run


def _constant_of_shape(attributes: Attributes) -> Compute:
    value = attributes.take("value", torch.zeros(1))
    return lambda shape: torch.full(shape, value.item(), dtype=value.dtype)


def _constant(attributes: Attributes) -> Compute:
    kinds = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64}
    kinds["value_ints"] = torch.int64
    tensor = attributes.take("value")
    for name, dtype in kinds.items():
        value = attributes.take(name)
        tensor = tensor if value is None else torch.tensor(value, dtype=dtype)
    return lambda: tensor


def _depth_to_space(attributes: Attributes) -> Compute:
    side, order = attributes.take("blocksize"), attributes.only("mode", "DCR", "CRD")

    def run(x: Tensor) -> Tensor:
        if order == "CRD":
            return F.pixel_shuffle(x, side)
        count, depth, height, width = x.shape
        blocks = x.reshape(count, side, side, depth // side**2, height, width)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(count, depth // side**2, height * side, width * side)

    return run


def _space_to_depth(attributes: Attributes) -> Compute:
    side = attributes.take("blocksize")

    def run(x: Tensor) -> Tensor:
        count, depth, height, width = x.shape
        blocks = x.reshape(count, depth, height // side, side, width // side, side)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(count, depth * side**2, height // side, width // side)

    return run


def _pad(attributes: Attributes) -> Compute:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[
        attributes.only("mode", "constant", "reflect", "edge")
    ]

    def run(x: Tensor, pads: list[int], value: float | None = None, axes: list[int] | None = None) -> Tensor:
        ends = [(0, 0)] * x.ndim
        for axis, both in zip(axes or range(x.ndim), zip(*_halves(pads), strict=True), strict=True):
            ends[axis] = both
        if mode != "constant" and (any(before or after for before, after in ends[:-2]) or x.ndim != 4):
            raise UnsupportedError(f"only height and width may be padded by mode {mode}, got pads {pads}")
        used = ends if mode == "constant" else ends[-2:]
        flat = [side for both in reversed(used) for side in both]  # torch begins at the last axis
        return F.pad(x, flat, mode, (value or 0.0) if mode == "constant" else None)

    return run


def _halves(pads: list[int]) -> tuple[list[int], list[int]]:
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def _resize(attributes: Attributes) -> Compute:
    mode = attributes.only("mode", "nearest", "linear")
    where = attributes.only(
        "coordinate_transformation_mode", "half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"
    )
    rounding = attributes.only("nearest_mode", "round_prefer_floor", "round_prefer_ceil", "floor")
    attributes.only("antialias", 0)
    attributes.only("keep_aspect_ratio_policy", "stretch")
    for name in ("cubic_coeff_a", "exclude_outside", "extrapolation_value"):
        attributes.take(name)  # of modes that are refused
    if mode == "linear" and where == "asymmetric":
        raise UnsupportedError("linear with asymmetric coordinates is not known here")
    if mode == "nearest" and (where == "align_corners" or (where == "asymmetric") != (rounding == "floor")):
        raise UnsupportedError(f"nearest with {where} coordinates and nearest_mode {rounding} is not known here")

    def run(x: Tensor, roi: object, scales: list[float] | None = None, sizes: list[int] | None = None) -> Tensor:
        del roi  # of a mode that is refused
        size = sizes or [int(side * scale) for side, scale in zip(x.shape, scales or [], strict=True)]
        if x.ndim != 4 or tuple(size[:2]) != x.shape[:2]:
            raise UnsupportedError(f"only height and width may be resized, got {tuple(x.shape)} to {tuple(size)}")
        if mode == "nearest":
            # All the roundings allowed above agree where pixels are repeated a whole number of times.
            if any(new % old for new, old in zip(size, x.shape, strict=True)):
                raise UnsupportedError(f"nearest must enlarge by whole factors, got {tuple(x.shape)} to {tuple(size)}")
            return F.interpolate(x, size[2:], mode="nearest-exact")
        if where == "pytorch_half_pixel" and 1 in size[2:]:
            raise UnsupportedError(f"linear with {where} coordinates must give more than one pixel, got {tuple(size)}")
        if scales and where != "align_corners":  # the scale itself counts, also where no whole size comes out
            return F.interpolate(
                x, scale_factor=tuple(scales[2:]), mode="bilinear", align_corners=False, recompute_scale_factor=False
            )
        return F.interpolate(x, size[2:], mode="bilinear", align_corners=where == "align_corners")

    return run


def _clip(x: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    return x if least is None and most is None else x.clamp(least, most)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope.to(x.dtype), x)


def _leaky_relu(attributes: Attributes) -> Compute:
    alpha = attributes.take("alpha", 0.01)
    return lambda x: F.leaky_relu(x, alpha)


OPERATORS: Mapping[str, Operator] = {
    "Add": Operator(_plain(operator.add), numbers=True),
    "AveragePool": Operator(_average_pool),
    "BatchNormalization": Operator(_batch_norm),
    "Cast": Operator(_cast),
    "Clip": Operator(_plain(_clip), host=(1, 2)),
    "Concat": Operator(_concat),
    "Constant": Operator(_constant),
    "ConstantOfShape": Operator(_constant_of_shape, host=(0,)),
    "Conv": Operator(_conv, weights=(1, 2)),
    "ConvTranspose": Operator(_conv_transpose, weights=(1, 2)),
    "DepthToSpace": Operator(_depth_to_space),
    "Div": Operator(_plain(_divide), numbers=True),
    "Gather": Operator(_gather, host=(1,)),
    "GlobalAveragePool": Operator(_plain(_global_average_pool)),
    "Identity": Operator(_plain(lambda x: x)),
    "InstanceNormalization": Operator(_instance_norm),
    "LeakyRelu": Operator(_leaky_relu),
    "MaxPool": Operator(_max_pool),
    "Mul": Operator(_plain(operator.mul), numbers=True),
    "PRelu": Operator(_plain(_prelu)),
    "Pad": Operator(_pad, host=(1, 2, 3)),
    "ReduceMean": Operator(_reduce_mean, host=(1,)),
    "Relu": Operator(_plain(F.relu)),
    "Reshape": Operator(_reshape, host=(1,)),
    "Resize": Operator(_resize, host=(1, 2, 3)),
    "Round": Operator(_plain(torch.round)),  # halves to even, both
    "Shape": Operator(_shape),
    "Sigmoid": Operator(_plain(torch.sigmoid)),
    "Slice": Operator(_plain(_slice), host=(1, 2, 3, 4)),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split, host=(1,)),
    "Squeeze": Operator(_plain(_squeeze), host=(1,)),
    "Sub": Operator(_plain(operator.sub), numbers=True),
    "Tanh": Operator(_plain(torch.tanh)),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_plain(_unsqueeze), host=(1,)),
}
