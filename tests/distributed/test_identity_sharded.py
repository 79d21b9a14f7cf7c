"""A model of which each process holds a part is recognized by all of its weights."""

from __future__ import annotations

import pytest

from tests.distributed.engines import engines, launch
from tests.support import tiny
from trl_dpo_ext.reference.identity.identify import identify


@pytest.mark.distributed
@pytest.mark.parametrize("engine", engines("zero3", "fsdp2"))
def test_a_sharded_model_has_the_identity_of_the_whole_one(tmp_path, engine: str) -> None:
    """Under ZeRO-3, TRL's key sees empty tensors, and another model's log-probs are served."""
    tiny.saved_model(str(tmp_path / "model"), seed=1)
    tiny.preferences(8).to_json(str(tmp_path / "pairs.jsonl"))
    record = launch(
        tmp_path,
        engine,
        "tests.distributed.launched:identify_trained",
        {"max_steps": 1},
        flags=["--mixed_precision", "no"],
    )
    start, trained = tiny.model(seed=1), tiny.model(seed=1)
    trained.load_state_dict(record.weights)
    for rank in record.ranks:
        assert rank["held"] < 0.6 * sum(parameter.numel() for parameter in trained.parameters())
        assert rank["identity"] == identify(trained).keyed
    assert record["identity"]["weights"] != identify(start).weights
