"""A model in evaluation mode for a while: no dropout inside, and the mode of each module as before afterwards."""

from __future__ import annotations

import pytest
import torch

from trl_dpo_ext._trl import evaluation_mode, temporarily


def test_dropout_is_off_and_every_module_gets_its_mode_back() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Dropout(0.5).eval())
    ones = torch.ones(64)
    with evaluation_mode(model):
        assert torch.equal(model(ones), ones)
    assert [module.training for module in model.modules()] == [True, True, False]


def test_an_error_inside_restores_the_modes_too() -> None:
    model = torch.nn.Dropout(0.5)
    with pytest.raises(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert model.training


def test_attributes_are_set_inside_the_block_alone_even_when_it_fails() -> None:
    class Host:
        shared = 1

    host = Host()

    def fail() -> None:
        with temporarily(host, shared=2, own=3):
            assert (host.shared, host.own) == (2, 3)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert vars(host) == {}  # what came from the class comes from it again
    assert host.shared == 1
