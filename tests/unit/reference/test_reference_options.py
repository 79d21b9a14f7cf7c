"""Options of the reference: which do not go together, and how they reach the command."""

from __future__ import annotations

import pytest

from tests.support import runs
from trl_dpo_ext.errors import InputError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ref_quantization": "q4"}, "Unknown ref_quantization 'q4'; one of nf4, fp4, int8"),
        ({"ref_dtype": "half"}, "Unknown ref_dtype 'half'"),
        ({"ref_double_quant": True}, "ref_double_quant=True is for a 4-bit reference; set ref_quantization"),
        ({"ref_quantization": "int8", "ref_double_quant": True}, "ref_double_quant=True cannot be used with .*'int8'"),
        ({"ref_quantization": "int8", "ref_compute_dtype": "float32"}, "ref_compute_dtype=float32 cannot be used with"),
        ({"ref_skip_modules": ["q_proj"]}, "ref_skip_modules=.* is for a quantized reference"),
        ({"ref_calibrate": True}, "ref_calibrate=True has no error to remove"),
        (
            {"ref_quantization": "nf4", "ref_calibrate": True, "ref_drift_num_pairs": 2},
            "needs ref_drift_num_pairs >= 4; got 2",
        ),
        ({"ref_quantization": "nf4", "ref_drift_num_pairs": -1}, "ref_drift_num_pairs must be 0 .* got -1"),
        (
            {"ref_quantization": "nf4", "sync_ref_model": True},
            "sync_ref_model=True cannot be used with ref_quantization.*Remove ref_quantization",
        ),
        (
            {"ref_quantization": "nf4", "loss_type": "simpo"},
            "ref_quantization=nf4 has no effect: this run of simpo needs no",
        ),
        ({"ref_dtype": "bfloat16", "reference_free": True}, "ref_dtype=bfloat16 has no effect"),
        (
            {"ref_quantization": "nf4", "loss_type": ["sigmoid", "apo_zero", "dpop"]},
            "cannot be used with apo_zero, dpop",
        ),
        ({"ref_quantization": "nf4", "loss_type": "trl:bco_pair"}, "cannot be used with trl:bco_pair"),
        ({"ref_quantization": "nf4", "loss_type": "trl:unheard_of"}, "cannot be used with trl:unheard_of"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs.config(tmp_path, **flags)


def test_every_problem_is_listed_at_once(tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        runs.config(tmp_path, ref_quantization="int8", ref_double_quant=True, ref_dtype="x", loss_type="dpop")
    assert len(caught.value.problems) == 3


def test_the_flags_reach_the_command(tmp_path) -> None:
    from trl_dpo_ext.cli.arguments import TrainParser

    flags = ["--ref_quantization", "nf4", "--ref_double_quant", "--ref_skip_modules", "q_proj", "k_proj"]
    args = TrainParser().parse(["--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", *flags]).args
    assert (args.ref_quantization, args.ref_double_quant, args.ref_skip_modules) == ("nf4", True, ["q_proj", "k_proj"])
