"""Which reference a log-prob belongs to: everything that changes it, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from tests.support import tiny
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity import hashing
from trl_dpo_ext.reference.identity.files import weight_files, weight_files_hash
from trl_dpo_ext.reference.identity.identify import forward_config, identify, quantization_fingerprint
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.identity.weights import adapter_hash, weights_hash

OLD = (1_600_000_000, 1_600_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_DPO_EXT_CACHE", str(tmp_path / "remembered"))
    return tmp_path / "remembered" / "weight_hashes.json"


@pytest.fixture
def saved(tmp_path) -> Path:
    return settled(Path(tiny.saved_model(str(tmp_path / "model"))))


def settled(folder: Path) -> Path:
    """As if its files had been written long ago; files of the last seconds are not remembered."""
    for path in folder.iterdir():
        os.utime(path, OLD)
    return folder


def files_of(folder: Path | str, revision: str | None = None) -> list[Path]:
    found = weight_files(str(folder), revision)
    assert found is not None
    return found


def loaded(folder: Path, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def with_lora(model, seed: int = 0, **settings) -> PeftModel:
    torch.manual_seed(seed)
    lora = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "gaussian", **settings})
    return get_peft_model(model, lora)


def reads(monkeypatch) -> list[int]:
    """Counts the chunks of files that are read for hashing."""
    counted = []
    real = hashing._chunk_of_file
    monkeypatch.setattr(hashing, "_chunk_of_file", lambda *args: counted.append(1) or real(*args))
    return counted


# --- what differs ---------------------------------------------------------------------------------------------------


def test_the_same_model_from_a_folder_or_a_copy_of_it_is_one_reference(tmp_path, saved) -> None:
    moved = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(saved, moved)
    ours, theirs = (identify(loaded(folder), source=str(folder)) for folder in (saved, moved))
    assert ours == theirs
    assert ours.source != theirs.source
    assert ours.fingerprint == theirs.fingerprint
    assert ours.differences(theirs) == []


@pytest.mark.parametrize("from_files", [True, False])
def test_other_weights_of_the_same_shapes_are_another_reference(tmp_path, saved, from_files: bool) -> None:
    other = Path(tiny.saved_model(str(tmp_path / "other"), seed=1))
    ours, theirs = (identify(loaded(f), source=str(f) if from_files else None) for f in (saved, other))
    assert [text.split(" is ")[0] for text in ours.differences(theirs)] == ["weights"]
    assert ours.fingerprint != theirs.fingerprint


def test_one_changed_bit_of_one_weight_is_another_reference() -> None:
    before, model = weights_hash(tiny.model()), tiny.model()
    model.model.norm.weight.data.view(torch.int32)[7] ^= 1
    assert weights_hash(model) != before


@pytest.mark.parametrize("field", ["rope_parameters.rope_theta", "hidden_act", "pretraining_tp"])
def test_equal_weights_with_another_configuration_are_another_reference(field: str) -> None:
    """TRL's key does not see it and serves the other configuration's log-probs."""
    value = {"rope_theta": 500000.0, "rope_type": "default"} if "." in field else {"hidden_act": "gelu"}.get(field, 2)
    ours, theirs = identify(tiny.model()), identify(tiny.model(**{field.split(".")[0]: value}))
    assert ours.weights == theirs.weights
    (said,) = ours.differences(theirs)
    assert said.startswith(f"config.{field} is ")


def test_what_generation_training_or_kernels_use_is_not_the_reference() -> None:
    plain, other = LlamaConfig(), LlamaConfig(
        bos_token_id=7, eos_token_id=8, pad_token_id=9, use_cache=False, attention_dropout=0.5, dtype="bfloat16",
        attn_implementation="eager", name_or_path="elsewhere", output_hidden_states=True,
    )  # fmt: skip
    assert forward_config(plain.to_dict()) == forward_config(other.to_dict())


def test_precision_of_parameters_and_of_the_forward_is_the_reference(saved) -> None:
    plain = identify(loaded(saved), source=str(saved))
    low = identify(loaded(saved, dtype=torch.bfloat16), source=str(saved))
    autocast = identify(loaded(saved), source=str(saved), compute_dtype="bfloat16")
    assert [text.split(" is ")[0] for text in plain.differences(low)] == ["dtype"]
    assert [text.split(" is ")[0] for text in plain.differences(autocast)] == ["compute_dtype"]


def test_quantizations_have_names_that_people_read() -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    assert quantization_fingerprint(nf4) == quantization_fingerprint(nf4.to_dict()) == "nf4 bfloat16"
    nf4.bnb_4bit_use_double_quant = True
    assert quantization_fingerprint(nf4) == "nf4 double bfloat16"
    assert quantization_fingerprint(BitsAndBytesConfig(load_in_8bit=True)) == "int8"
    assert (
        quantization_fingerprint(BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)) == "int8 threshold 4.0"
    )
    assert quantization_fingerprint({"quant_method": "gptq", "bits": 4}) == 'gptq {"bits":4}'
    assert quantization_fingerprint(None) == "none"


def test_a_quantization_without_a_method_keeps_the_name_that_stores_know_it_by() -> None:
    assert quantization_fingerprint({"bits": 4, "group_size": 128}) == 'quantized {"bits":4,"group_size":128}'


def test_identities_never_change(tmp_path) -> None:
    """A store of last year is found again: hashes as the first version computed them."""
    model = torch.nn.Module()
    model.q_proj = torch.nn.Linear(4, 3, bias=False)
    model.norm = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    model.q_proj.weight.data.copy_(torch.arange(12.0).view(3, 4) / 8)
    assert weights_hash(model) == "74b06a820d06f72566183b466bca004be586481d3a128cc95cc9080108b489ab"
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * 10)
    assert weight_files_hash([file]) == "7e7e8ce071ce01d495d518b6b0e5ab3264465e236998c6320ea0dded5ef3f9dd"
    assert weight_files_hash([file, file]) == "b1c6670a4a0b68d55a608710fec910fc0f7175909a78cfa21c6897873d02953c"
    assert Identity(weights="f00d", config='{"a":1}').fingerprint == "7a30eac9ef43eb0a6705cd4ce846ecfb"


def test_json_and_back_is_the_same_identity() -> None:
    ours = dataclasses.replace(identify(tiny.model()), source="a", versions={"torch": "2"})
    again = Identity.from_json(*json.loads(json.dumps([ours.keyed, ours.recorded])))
    assert again == ours
    assert again.fingerprint == ours.fingerprint
    assert again.recorded == ours.recorded


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 2]}]
)
def test_the_base_is_the_same_whatever_adapter_is_around_it(settings: dict) -> None:
    """TRL recomputes for another seed or rank, and does not share with full fine-tuning."""
    plain = identify(tiny.model())
    assert identify(with_lora(tiny.model(), **settings)) == plain
    assert identify(with_lora(tiny.model(), seed=5, r=2, **settings)) == plain


def test_two_adapters_around_a_base_change_nothing() -> None:
    model = with_lora(tiny.model())
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    assert identify(model) == identify(tiny.model())


def test_an_adapter_that_changes_the_base_is_seen(saved) -> None:
    plain = identify(loaded(saved), source=str(saved))
    merged = with_lora(loaded(saved))
    assert identify(merged, source=str(saved)) == plain
    for parameter in merged.parameters():
        parameter.data.add_(0.1 * (parameter.requires_grad))
    merged.merge_adapter()
    assert identify(merged, source=str(saved)).weights.startswith("memory:")
    split = with_lora(loaded(saved), init_lora_weights="pissa")
    assert identify(split, source=str(saved)).weights not in (plain.weights, identify(loaded(saved)).weights)


def test_the_hash_of_an_adapter_is_of_its_content_not_its_name() -> None:
    model = with_lora(tiny.model())
    model.add_adapter("copy", copy.deepcopy(model.peft_config["default"]))
    assert adapter_hash(model, "copy") != adapter_hash(model, "default")
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".copy.")).data.copy_(parameter.data)
    assert adapter_hash(model, "copy") == adapter_hash(model, "default")
    model.peft_config["copy"].lora_alpha *= 2
    assert adapter_hash(model, "copy") != adapter_hash(model, "default")


def test_the_adapter_that_is_on_is_part_of_the_reference_and_must_exist() -> None:
    model = with_lora(tiny.model())
    off, on = identify(model), identify(model, adapter="default")
    assert [text.split(" is ")[0] for text in off.differences(on)] == ["adapter"]
    with pytest.raises(InputError, match="adapter 'ref' is not in the model; its adapters are default"):
        identify(model, adapter="ref")


# --- weights in memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2", "uint8", "bool"]
)  # fmt: skip
def test_every_dtype_is_hashed_by_its_bytes(dtype: str) -> None:
    """TRL's raises TypeError for three of them."""

    def of(content: list[int]) -> str:
        layer = torch.nn.Module()
        layer.register_buffer("packed", torch.tensor(content, dtype=torch.uint8).view(getattr(torch, dtype)))
        return weights_hash(layer)

    assert of([1, 0, 1, 1]) == of([1, 0, 1, 1]) != of([1, 0, 1, 0])


def test_dtype_shape_and_name_count_beside_the_bytes() -> None:
    def of(name: str, tensor: torch.Tensor) -> str:
        layer = torch.nn.Module()
        layer.register_buffer(name, tensor)
        return weights_hash(layer)

    zeros = torch.zeros(4, 2)
    assert (
        len(
            {
                of("a", zeros),
                of("b", zeros),
                of("a", zeros.T),
                of("a", zeros.view(torch.int32)),
                of("a", torch.zeros(8)),
            }
        )
        == 5
    )
    assert of("a", zeros.T) == of("a", zeros.T.contiguous())


def test_the_last_chunk_of_a_large_tensor_counts(monkeypatch) -> None:
    monkeypatch.setattr(hashing, "CHUNK", 64)
    model = tiny.model()
    before = weights_hash(model)
    model.lm_head.weight.data[-1, -1] += 1
    assert weights_hash(model) != before


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(InputError, match="on the meta device"):
        identify(tiny.model().to("meta"))


# --- weight files ---------------------------------------------------------------------------------------------------


def test_a_second_start_reads_nothing(saved, cache, monkeypatch) -> None:
    counted = reads(monkeypatch)
    first = weight_files_hash(files_of(saved))
    assert len(counted) == 1
    assert weight_files_hash(files_of(saved)) == first
    assert len(counted) == 1
    assert list(json.loads(cache.read_text())) == [str((saved / "model.safetensors").resolve())]


def test_a_file_that_was_altered_is_read_again_even_with_the_same_size(saved, monkeypatch) -> None:
    first = weight_files_hash(files_of(saved))
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert weight_files_hash(files_of(saved)) != first


def test_a_file_with_the_size_and_time_of_another_is_read_again(saved, cache) -> None:
    first = weight_files_hash(files_of(saved))
    assert cache.exists()
    tiny.model(2).save_pretrained(saved)
    settled(saved)  # as copies and unpacked archives are, whose times are set
    assert weight_files_hash(files_of(saved)) != first


def test_a_file_of_this_second_is_not_remembered(saved, cache) -> None:
    os.utime(saved / "model.safetensors")
    weight_files_hash(files_of(saved))
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_corrupt_cache_is_ignored(saved, cache, content: bytes) -> None:
    first = weight_files_hash(files_of(saved))
    cache.write_bytes(content)
    assert weight_files_hash(files_of(saved)) == first
    assert len(json.loads(cache.read_text())) == 1


@pytest.mark.parametrize(
    "entry",
    [
        *(None, [], [1, 2, 3], "x", {"size": 1}, ["size", "mtime", 7], ["size", "mtime", "zz"]),
        *(["size", "mtime", "ctime", 7], ["size", "mtime", "ctime", "zz"]),
    ],
)
def test_a_wrong_entry_is_overlooked(saved, cache, entry) -> None:
    first = weight_files_hash(files_of(saved))
    (path, (size, mtime, ctime, _)) = next(iter(json.loads(cache.read_text()).items()))
    state = {"size": size, "mtime": mtime, "ctime": ctime}
    wrong = [state.get(value, value) for value in entry] if isinstance(entry, list) else entry
    cache.write_text(json.dumps({path: wrong}))
    assert weight_files_hash(files_of(saved)) == first


def test_a_memory_that_cannot_be_written_breaks_nothing(saved, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TRL_DPO_EXT_CACHE", str(tmp_path / "file" / "below"))
    assert len(weight_files_hash(files_of(saved))) == 64


def test_shards_are_hashed_by_the_index_and_strangers_beside_them_are_not(tmp_path) -> None:
    folder = tmp_path / "sharded"
    tiny.model().save_pretrained(folder, max_shard_size="4KB")
    shards = files_of(folder)
    assert len(shards) > 1
    first = weight_files_hash(shards)
    (folder / "consolidated.safetensors").write_bytes(b"not used")
    (folder / "optimizer.bin").write_bytes(b"not used")
    assert weight_files_hash(files_of(folder)) == first
    last = shards[-1].read_bytes()
    shards[-1].write_bytes(last[:-1] + bytes([last[-1] ^ 1]))
    assert weight_files_hash(files_of(folder)) != first


def test_several_chunks_of_a_file_all_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hashing, "CHUNK", 1000)
    file, content = tmp_path / "weights", bytearray(os.urandom(3500))
    hashes = set()
    for at in (0, 999, 1000, 2500, 3499):
        content[at] ^= 1
        file.write_bytes(content)
        hashes.add(weight_files_hash([file]))
    assert len(hashes) == 5


@pytest.mark.slow
def test_a_name_is_resolved_in_the_local_cache_and_equals_the_folder(saved, tmp_path) -> None:
    """In a process of its own, since the hub's library reads HF_HOME when it is imported."""
    home = tmp_path / "hf"
    repository, commit = home / "hub" / "models--some--model", "0123456789" * 4
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    for number, path in enumerate(sorted(saved.iterdir())):
        shutil.copy2(path, repository / "blobs" / f"{number:064x}")
        (repository / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number:064x}")
    program = """
import sys, json
from transformers import AutoModelForCausalLM
from trl_dpo_ext.reference.identity.identify import identify
from trl_dpo_ext.reference.identity.files import cache_folder, weight_files
name = "some/model"
identity = identify(AutoModelForCausalLM.from_pretrained(name), source=name)
print(json.dumps([identity.keyed, identity.recorded, str(cache_folder()), weight_files("some/other")]))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRL_DPO_EXT_CACHE", "HF_HUB_CACHE")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    keyed, recorded, cache_home, unknown = json.loads(run.stdout.splitlines()[-1])
    assert Identity.from_json(keyed, recorded) == identify(loaded(saved), source=str(saved))
    assert recorded["source"] == "some/model"
    assert recorded["revision"] == commit
    assert cache_home == str(home / "trl_dpo_ext")
    assert (home / "trl_dpo_ext" / "weight_hashes.json").exists()
    assert unknown is None


def test_a_source_without_files_that_are_known_is_hashed_in_memory(tmp_path) -> None:
    assert identify(tiny.model(), source=str(tmp_path / "nowhere")).weights == identify(tiny.model()).weights
