"""Tensors on a GPU that is not there: shapes, dtypes and devices are computed, values are not.

What mixes devices raises, and so does what makes the host wait for the device: reading a value, a shape that depends on
values (`nonzero`, an index that is a mask), a copy to the host, a copy from the host that waits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from trl.kernels import chunked_logprob
from trl.trainer import utils

from trl_dpo_ext.forward.tree_attention import TreeMask


class WaitError(AssertionError):
    """The host would wait for the device."""


WAITS = (WaitError, DataDependentOutputException, DynamicOutputShapeException)
"""What is raised where the host would wait."""


class _NoBlockingCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._to_copy:
            check(args[0].device, output.device, bool(kwargs.get("non_blocking")), func)
        elif func.overloadpacket is torch.ops.aten.copy_:
            check(args[1].device, args[0].device, bool((*args, *kwargs.values())[2:3] == (True,)), func)
        return output


def check(source: torch.device, target: torch.device, non_blocking: bool, func: Any) -> None:
    if source.type == "cuda" and target.type == "cpu":
        raise WaitError(f"{func} from the device to the host")
    if source.type == "cpu" and target.type == "cuda" and not non_blocking:
        raise WaitError(f"{func} from the host to the device, blocking")


_READING = {
    getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__")
}


class _ByOperators(TorchFunctionMode):
    """Calls operators in place of the methods for which builds of torch for the CPU ask for a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READING and args[0].device.type == "cuda":
            raise WaitError(func.__name__)
        return _OPERATORS.get(func, func)(*args, **(kwargs or {}))


def _item(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    index = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in index):
        raise WaitError("an index that is a mask")
    if Ellipsis in (marks := [each if each is Ellipsis else 0 for each in index]):
        at, given = marks.index(Ellipsis), sum(each is not None and each is not Ellipsis for each in index)
        index[at : at + 1] = [slice(None)] * (tensor.dim() - given)
    dim, gathered = 0, []
    for each in index:
        if isinstance(each, int):
            tensor = torch.ops.aten.select.int(tensor, dim, each)
            continue
        if each is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(each, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, each.start, each.stop, each.step or 1)
        gathered.append(each if isinstance(each, torch.Tensor) else None)
        dim += 1
    return torch.ops.aten.index.Tensor(tensor, gathered) if any(each is not None for each in gathered) else tensor


def _set_item(tensor: torch.Tensor, index: tuple[torch.Tensor, ...], value: torch.Tensor) -> None:
    if any(each.dtype == torch.bool for each in index):
        raise WaitError("an index that is a mask")
    torch.ops.aten.index_put_.default(tensor, list(index), value)


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


_OPERATORS: dict[Any, Any] = {
    torch.Tensor.__getitem__: _item,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.__invert__: torch.bitwise_not,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
}


@contextlib.contextmanager
def fake_cuda() -> Iterator[Any]:
    """Inside, nothing has values; yields a function that moves tensors, objects that hold them, and modules to a GPU."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:

        def on_gpu(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return mode.from_tensor(value).detach().to("cuda:0")
            if isinstance(value, dict):
                return {name: on_gpu(each) for name, each in value.items()}
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {field.name: on_gpu(getattr(value, field.name)) for field in dataclasses.fields(value)}
                return type(value)(**fields)
            return _module_on_gpu(value, on_gpu) if isinstance(value, torch.nn.Module) else value

        with torch.no_grad(), _ByOperators():
            yield on_gpu


def _module_on_gpu(module: torch.nn.Module, on_gpu: Any) -> torch.nn.Module:
    """Without gradients, which builds of torch for the CPU do not know of on a GPU."""
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None:
                each._parameters[name] = torch.nn.Parameter(on_gpu(parameter), requires_grad=False)
        for name, buffer in list(each._buffers.items()):
            if buffer is not None:
                each._buffers[name] = on_gpu(buffer)
    return module


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """Inside, the host does not wait for the device."""
    with _NoBlockingCopies():
        yield


@contextlib.contextmanager
def autocast(enabled: bool, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """`torch.autocast("cuda", dtype)`, which turns itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", enabled)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without what cannot be faked: TRL's head in Triton, `sdpa`, and subclasses of tensors."""
    for module in (chunked_logprob, utils):
        if hasattr(module, "_use_triton"):
            monkeypatch.setattr(module, "_use_triton", lambda device: False)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attend)
    made = TreeMask.of.__func__

    def of(trees: Any, reach: Any, device: torch.device) -> TreeMask:
        with unset_fake_temporarily():
            return made(TreeMask, trees, reach, torch.device("cpu"))

    monkeypatch.setattr(TreeMask, "of", of)


def add_head(model: Any, outputs: tuple[str, ...] = ("log_probs",)) -> None:
    """Give a model TRL's fused head, or one like it where TRL's own runs only in Triton.

    Since TRL 1.16 a head that does without Triton projects every token that it is given. TRL 1.15 has no such head: on
    every device it chooses the tokens by a mask, for which the host waits, and folds their logits in Triton.
    """
    (utils.add_fused_lm_head if hasattr(utils, "_use_triton") else add_plain_head)(model, outputs=outputs)


def add_plain_head(model: Any, outputs: tuple[str, ...]) -> None:
    """Give a model a head that makes of labels that are all scored what TRL's makes; it computes every field."""
    model.forward = types.MethodType(_projected, model)


def _projected(self: Any, *, shift_labels: torch.Tensor, fused_lm_head: bool, **keywords: Any) -> Any:
    assert fused_lm_head
    hidden, head = self.base_model(**keywords).last_hidden_state, self.get_output_embeddings()
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden.dtype
    bias = None if head.bias is None else head.bias.to(dtype)
    logits = torch.nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), bias).float()
    of_all = logits.log_softmax(-1)
    logps = of_all.gather(-1, shift_labels[..., None]).squeeze(-1)
    return utils.FusedCausalLMOutput(
        loss=-logps.mean(),
        log_probs=logps,
        entropy=-(of_all.exp() * of_all).sum(-1),
        log_sum_sq_probs=(2 * of_all).logsumexp(-1),
        mean_logits=logits.mean(-1),
        is_top1=logits.argmax(-1) == shift_labels,
        label_mask=torch.ones_like(shift_labels, dtype=torch.bool),
    )


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, **_: Any) -> Any:
    assert {each.device for each in (query, key, value, *([] if attn_mask is None else [attn_mask]))} == {query.device}
    dtypes = {query.dtype, key.dtype, value.dtype}
    if torch.is_autocast_enabled("cuda"):
        dtypes = {torch.get_autocast_dtype("cuda")}
    (dtype,) = dtypes
    return torch.empty((*query.shape[:-1], value.size(-1)), dtype=dtype, device=query.device)
