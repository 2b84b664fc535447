"""An ONNX graph as a torch module.

Knows how to read a graph and in which order to compute it; nothing of what its operators do, or of devices.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from torch import Tensor, nn

from ..errors import ModelError
from .operators import DTYPES, OPERATORS, OPSETS, Attributes, Compute, Operator, UnsupportedError

Key = Hashable
"""Where a value is found while the graph runs: its name, or what stands for a constant."""


@dataclass(frozen=True)
class _Step:
    """One node, ready to run."""

    where: str
    compute: Compute
    operands: tuple[Key, ...]
    sizes: tuple[int, ...]
    """Operands that are tensors of sizes computed on the way, and that the operator wants as Python numbers."""
    results: tuple[str, ...]
    spent: tuple[str, ...]
    """Values that no later step needs."""


class OnnxModule(nn.Module):
    """A graph that runs in torch: takes tensors by name, and gives tensors by name.

    takes, gives: the names and types of the graph's inputs and outputs.

    What depends on constants alone is computed once; what depends on the inputs' shapes is computed on the CPU,
    so that a run never waits for the device. The weights are buffers: `to` moves them.
    """

    def __init__(self, data: bytes, file: Path, weights: torch.dtype | None = None) -> None:
        """Read a graph; `file` is its name in errors.

        weights: the type in which convolutions work, whatever the graph says; what they give takes it along, until
            a sum with a wider type (a skip around them) widens it again. Norms take their statistics in float, and
            what the last convolutions give is widened at once: a level in 255 is finer than bfloat16.

        Raises ModelError for what is no graph, or one with operators that are not in the table.
        """
        super().__init__()
        self._file, self._weights = file, weights
        self._buffer_names: dict[Key, str] = {}
        self._literals: dict[Key, Any] = {None: None}
        graph = _read(data, file)
        self._constants = {each.name: _tensor(each, file) for each in graph.initializer}
        self.takes = {port.name: _dtype(port, file) for port in graph.input if port.name not in self._constants}
        self.gives = {port.name: _dtype(port, file) for port in graph.output}
        self._of_shapes: set[str] = set()  # values that depend on shapes alone
        self._last = _last_convolutions(graph) if weights else set()
        steps = [step for node in graph.node if (step := self._step(node))]
        self._results: dict[str, Key] = {name: self._operand(name, None) for name in self.gives}
        self._steps = _free_early(steps, set(self.gives))
        self._constants.clear()
        self.requires_grad_(False).eval()

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph. Raises ModelError for a use of an operator that only shapes could show to be unknown."""
        values: dict[Key, Any] = dict(self._literals)
        values.update(inputs)
        for key, name in self._buffer_names.items():
            values[key] = self._buffers[name]
        for step in self._steps:
            operands = [values[key] for key in step.operands]
            for position in step.sizes:
                operands[position] = operands[position].tolist()
            try:
                result = step.compute(*operands)
            except UnsupportedError as error:
                raise ModelError(f"{step.where}: {error}") from error
            del operands
            if len(step.results) == 1:
                values[step.results[0]] = result if isinstance(result, Tensor) else result[0]
            else:
                values.update(zip(step.results, result, strict=True))
            for name in step.spent:
                del values[name]
        return {name: values[key].to(self.gives[name]) for name, key in self._results.items()}

    def _step(self, node: Any) -> _Step | None:
        """Make a node ready to run; None if it was a constant, and is known now."""
        where = f"{self._file}: node {node.name or node.output[0]!r} ({node.op_type})"
        operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if operator is None:
            raise ModelError(f"{where}: the torch engine does not know this operator")
        try:
            attributes = Attributes(_attributes(node), len(node.output))
            compute = operator.build(attributes)
            attributes.done()
            names = [name or None for name in node.input]
            if node.op_type != "Shape" and all(name is None or name in self._constants for name in names):
                self._fold(node, operator, compute, names)
                return None
            return self._ready(node, where, operator, compute, names)
        except UnsupportedError as error:
            raise ModelError(f"{where}: {error}") from error
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ModelError(f"{where}: not a valid node ({str(error).splitlines()[0]})") from error

    def _fold(self, node: Any, operator: Operator, compute: Compute, names: Sequence[str | None]) -> None:
        operands: list[Any] = [None if name is None else self._constants[name] for name in names]
        for position in operator.host:
            if position < len(operands) and names[position] is not None:
                operands[position] = operands[position].tolist()
        result = compute(*operands)
        self._constants.update(zip(node.output, [result] if isinstance(result, Tensor) else result, strict=True))

    def _ready(self, node: Any, where: str, operator: Operator, compute: Compute, names: Sequence[str | None]) -> _Step:
        on_host = node.op_type == "Shape" or all(
            name is None or name in self._constants or name in self._of_shapes for name in names
        )
        operands: list[Key] = []
        sizes = []
        for position, name in enumerate(names):
            known = name in self._constants
            if position in operator.host:
                if name is not None and not known and name not in self._of_shapes:
                    raise UnsupportedError(f"input {name!r} must be a constant, or depend on shapes alone")
                operands.append(self._literal(name, self._constants[name].tolist()) if known else name)
                if name is not None and not known:
                    sizes.append(position)
            elif on_host:
                operands.append(self._literal((name, "tensor"), self._constants[name]) if known else name)
            elif name in self._of_shapes:
                raise UnsupportedError(f"input {name!r} must not be computed of shapes")
            else:
                operands.append(self._operand(name, operator, position))
        if on_host:
            self._of_shapes.update(node.output)
        if node.output[0] in self._last:
            narrow = compute
            compute = lambda *operands: narrow(*operands).float()  # noqa: E731
        return _Step(where, compute, tuple(operands), tuple(sizes), tuple(node.output), ())

    def _operand(self, name: str | None, operator: Operator | None, position: int = 0) -> Key:
        """Where a tensor is found; a constant becomes a buffer, or a Python number where that does as well."""
        if name is None or name not in self._constants:
            return name
        tensor = self._constants[name]
        if operator and operator.numbers and tensor.ndim == 0 and tensor.is_floating_point():
            return self._literal((name, "number"), tensor.item())
        if operator and self._weights and position in operator.weights and tensor.is_floating_point():
            tensor = tensor.to(self._weights)
        key = (name, tensor.dtype)
        if key not in self._buffer_names:
            self._buffer_names[key] = f"constant_{len(self._buffer_names)}"
            self.register_buffer(self._buffer_names[key], tensor)
        return key

    def _literal(self, key: Key, value: Any) -> Key:
        key = ("literal", key)
        self._literals[key] = value
        return key


def _read(data: bytes, file: Path) -> Any:
    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"{file}: not an ONNX graph ({lines[0] if lines else type(error).__name__})") from error
    opset = {entry.domain: entry.version for entry in model.opset_import}.get("", 0)
    if opset not in OPSETS:
        raise ModelError(f"{file}: the opset must be {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
    return model.graph


def _attributes(node: Any) -> dict[str, Any]:
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {
        name: torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        if isinstance(value, onnx.TensorProto)
        else value
        for name, value in values.items()
    }


def _tensor(initializer: Any, file: Path) -> Tensor:
    try:
        return torch.from_numpy(onnx.numpy_helper.to_array(initializer).copy())
    except (TypeError, ValueError) as error:
        raise ModelError(f"{file}: tensor {initializer.name!r} is not readable ({error})") from error


def _dtype(port: Any, file: Path) -> torch.dtype:
    number = port.type.tensor_type.elem_type
    if number not in DTYPES:
        raise ModelError(f"{file}: tensor type {number} of {port.name!r} is not known here")
    return DTYPES[number]


def _last_convolutions(graph: Any) -> set[str]:
    """The results of the convolutions that no other one follows."""
    followed: set[str] = set()
    last = set()
    for node in reversed(graph.node):
        convolves = node.op_type in OPERATORS and bool(OPERATORS[node.op_type].weights)
        if convolves and followed.isdisjoint(node.output):
            last.add(node.output[0])
        if convolves or not followed.isdisjoint(node.output):
            followed.update(node.input)
    return last


def _free_early(steps: Sequence[_Step], needed: set[str]) -> tuple[_Step, ...]:
    """The steps, each knowing which values it is the last to need."""
    seen = set(needed)
    freed = []
    for step in reversed(steps):
        names = {*step.results, *(key for key in step.operands if isinstance(key, str))}
        freed.append(_Step(step.where, step.compute, step.operands, step.sizes, step.results, tuple(names - seen)))
        seen |= names
    return tuple(reversed(freed))
