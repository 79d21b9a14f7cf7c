"""One test for each private part of torch that this package reads."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from trl_dpo_ext._trl.compiled import is_compiled, is_compiled_by, without_compilation


def test_changes_in_place_are_counted() -> None:
    layer = torch.nn.Linear(2, 2)
    before = layer.weight._version
    layer.to(torch.bfloat16)
    assert layer.weight._version <= before, "a cast is no change of `_version`"
    layer.load_state_dict({name: torch.ones_like(value) for name, value in layer.state_dict().items()})
    assert layer.weight._version > before, "torch has moved `Tensor._version`: mend reference/identity/unchanged.py"


def test_a_compiled_module_holds_the_original() -> None:
    layer = torch.nn.Linear(2, 2)
    compiled = torch.compile(layer, backend="eager")
    assert is_compiled(compiled)
    assert without_compilation(compiled) is layer, "torch has moved `_orig_mod`: mend _trl/compiled.py"


def test_the_truth_of_a_compiled_module_is_its_length_which_it_may_lack() -> None:
    """So modules are compared with None. In older torch a compiled module is true."""
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")
    if hasattr(type(compiled), "__len__"):
        with pytest.raises(TypeError, match="len"):
            bool(compiled)
    else:
        assert compiled


def test_a_module_that_is_compiled_in_place_is_known() -> None:
    layer = torch.nn.Linear(2, 2)
    assert not is_compiled(layer)
    layer.compile(backend="eager")
    assert is_compiled(layer), "torch has moved `_compiled_call_impl`: mend _trl/compiled.py"


def test_accelerate_says_whether_it_compiles() -> None:
    assert not is_compiled_by(Accelerator(cpu=True))
    AcceleratorState._reset_state()
    try:
        compiling = Accelerator(cpu=True, dynamo_backend="eager")
        assert is_compiled_by(compiling), "accelerate has moved `state.dynamo_plugin`: mend _trl/compiled.py"
        compiled = compiling.prepare_model(torch.nn.Linear(2, 2), evaluation_mode=True)
        assert without_compilation(compiled) is not compiled
    finally:
        AcceleratorState._reset_state()


def test_the_compiled_versions_of_a_function_are_counted_up_to_a_limit() -> None:
    def add_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    compiled = torch.compile(add_one, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for size in (2, 3, 4, 5):
            compiled(torch.ones(size))
    found = len(_debug_get_cache_entry_list(add_one.__code__))
    assert found == 2, "torch has moved the limit of recompilations, or its list: mend _trl/flex_graphs.py"


def test_transformers_compiles_the_function_of_torch_as_it_is(monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function))
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    WrappedFlexAttention(training=False)
    assert compiled == [flex_attention], "transformers compiles something else: mend _trl/flex_graphs.py"
