"""Every access to a private part of another library is in `_trl` or `distributed`, or is listed here with its test."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import MODULES, PACKAGE, imports_of, tree

ROOMS_OF_SEAMS = ("_trl/", "distributed/")

FILES = "test_transformers.py::test_a_file_of_a_local_folder_is_found_under_its_name"

ACCESSES = {
    # transformers
    "_attn_implementation": "test_transformers.py::test_the_attention_in_use_stands_in_the_configuration",
    "_name_or_path": "test_transformers.py::test_a_model_remembers_the_name_that_it_was_loaded_by",
    "_is_stateful": "test_transformers.py::test_recurrent_models_say_that_they_keep_a_state",
    "_version": "test_torch.py::test_changes_in_place_are_counted",
    "_hf_deepspeed_config_weak_ref": "test_transformers.py::test_zero3_is_known_by_a_weak_reference_in_the_integrations_module",
    "_get_grad_norm": "test_watching.py::test_the_gradient_norm_is_asked_for_once_for_each_optimizer_step_before_it",
    "_prepare_inputs": "test_transformers.py::test_every_batch_goes_through_prepare_inputs_and_an_evaluations_through_prediction_step_first",
    "_set_signature_columns_if_needed": "test_transformers.py::test_columns_that_are_not_in_the_signature_are_dropped_before_the_collator",
    "_signature_columns": "test_transformers.py::test_columns_that_are_not_in_the_signature_are_dropped_before_the_collator",
    "_raise_exceptions_for_gated_repo": FILES,
    "_raise_exceptions_for_missing_entries": FILES,
    "_raise_exceptions_for_connection_errors": FILES,
    # TRL
    "_prepare_dataset": "test_trl.py::test_tokenized_data_has_the_columns_that_lengths_are_made_of",
    # torch
    "_local_tensor": "test_peft.py::test_a_dtensor_holds_its_shard_and_can_be_made_full",
    "__tensor_flatten__": "test_peft.py::test_a_tensor_that_packs_others_says_which",
    # argparse
    "_actions": "test_argparse.py::test_every_option_is_an_action_in_a_list",
    "_optionals": "test_argparse.py::test_an_option_can_be_moved_to_another_heading_of_the_help",
    "_group_actions": "test_argparse.py::test_an_option_can_be_moved_to_another_heading_of_the_help",
    "_get_help_string": "test_argparse.py::test_the_help_of_one_option_is_made_by_a_method",
    "_get_value": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
    "_check_value": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
    "_get_values": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
}
"""Private name of a foreign object, as it is accessed outside `_trl` and `distributed` -> the test of what it is."""

OVERRIDES = {
    "construct_mapping": "test_argparse.py::test_yaml_makes_every_mapping_by_one_method_of_the_loader",
    "create_accelerator_and_postprocess": "test_transformers.py::test_the_accelerator_is_made_once_in_the_constructor_before_anything_is_prepared",
    "create_model_card": "test_model_card.py::test_a_checkpoint_asks_for_a_card_by_the_models_name_alone",
    "evaluation_loop": "test_evaluation.py::test_evaluate_and_predict_return_the_metrics_of_one_loop",
    "get_eval_dataloader": "test_evaluation.py::test_persistent_loaders_of_an_evaluation_are_kept_by_name",
    "on_log": "test_model_card.py::test_the_newest_entry_of_the_log_is_there_when_callbacks_are_told_of_it",
    "log": "test_evaluation.py::test_lines_of_training_steps_alone_are_logged_with_the_time_of_the_start",
    "training_step": "test_transformers.py::test_training_step_leaves_the_gradients_of_a_batch",
    "prediction_step": "test_transformers.py::test_every_batch_goes_through_prepare_inputs_and_an_evaluations_through_prediction_step_first",
    "save_model": "test_transformers.py::test_a_checkpoint_marks_its_call_of_save_model_and_a_user_does_not",
    "_prepare_inputs": "test_transformers.py::test_under_deepspeed_floats_of_a_batch_are_cast_to_the_engines_dtype",
    "_save_optimizer_and_scheduler": "test_transformers.py::test_a_checkpoint_is_saved_model_first_then_optimizer_then_random_state",
    "_save_rng_state": "test_transformers.py::test_the_trainers_state_is_the_last_file_of_a_checkpoint",
    "_load_from_checkpoint": "test_transformers.py::test_resuming_loads_the_model_by_one_call_with_the_checkpoint",
    "_load_best_model": "test_transformers.py::test_the_best_model_is_loaded_by_one_call_after_training",
    "_set_signature_columns_if_needed": "test_transformers.py::test_columns_that_are_not_in_the_signature_are_dropped_before_the_collator",
    "_prepare_dataset": "test_trl.py::test_tokenized_data_has_the_columns_that_lengths_are_made_of",
    "_precompute_ref_logps": "test_trl_constructor.py::test_the_constructor_runs_the_pass_through_a_method_that_may_leave_the_dataset_alone",
    "_get_help_string": "test_argparse.py::test_the_help_of_one_option_is_made_by_a_method",
    "set_defaults_with_config": "test_argparse.py::test_the_values_of_a_configuration_file_are_handed_over_by_a_method",
    "error": "test_argparse.py::test_errors_go_through_a_method",
    "to": "test_attention.py::test_the_inputs_of_a_layer_are_moved_by_their_own_method",
    "detach": "test_attention.py::test_reentrant_checkpointing_detaches_what_a_layer_is_given_by_position",
    "_get_value": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
    "_check_value": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
    "_get_values": "test_argparse.py::test_every_value_is_converted_and_checked_by_methods",
    "_get_grad_norm": "test_watching.py::test_the_gradient_norm_is_asked_for_once_for_each_optimizer_step_before_it",
    # public, and called by users or by documented parts of the base class
    "compute_loss": None,
    "emit": None,
    "evaluate": None,
    "filter": None,
    "forward": None,
    "on_step_begin": None,
    "on_step_end": None,
    "on_train_begin": None,
    "on_epoch_end": None,
    "on_evaluate": None,
    "on_train_end": None,
    "predict": None,
    "train": None,
}
"""Method of a foreign base class that a class of ours overrides -> the test of who calls it, and with what."""

DEEP_IMPORTS = {
    "datasets.fingerprint": "test_images.py::test_values_are_hashed_alike_in_every_process",
    "accelerate.state": "test_accelerate.py::test_the_state_of_a_process_is_shared_and_says_whether_it_was_made",
    "accelerate.utils.fsdp_utils": "test_accelerate.py::test_the_wrapping_policy_of_fsdp2_picks_the_decoder_layers",
    "accelerate.utils.memory": "test_accelerate.py::test_clearing_the_devices_cache_collects_garbage_first",
    "bitsandbytes.functional": "test_bitsandbytes.py::test_the_weights_of_quantized_layers_can_be_read",
    "deepspeed.runtime.zero.partition_parameters": "test_deepspeed.py::test_a_sharded_parameter_says_that_it_is_all_here_by_its_status",
    "peft.tuners.tuners_utils": "test_peft.py::test_an_adapted_layer_keeps_what_it_wraps_as_base_layer",
    "peft.utils.other": "test_peft.py::test_a_saved_module_keeps_what_it_wraps_as_original_module",
    "transformers.integrations": "test_transformers.py::test_zero3_is_known_by_a_weak_reference_in_the_integrations_module",
    "transformers.integrations.deepspeed": "test_transformers.py::test_zero3_is_known_by_a_weak_reference_in_the_integrations_module",
    "transformers.modeling_utils": "test_attention.py::test_a_registered_function_is_looked_up_at_each_call",
    "transformers.pytorch_utils": "test_transformers.py::test_the_linear_layer_of_gpt2_is_a_class_of_its_own",
    "transformers.quantizers.quantizers_utils": "test_transformers.py::test_skipped_modules_are_the_start_or_the_end_of_a_name",
    "transformers.utils": "test_transformers.py::test_a_file_of_a_local_folder_is_found_under_its_name",
    "transformers.utils.generic": "test_transformers.py::test_flash_attention_is_told_by_the_configuration",
    "trl.models.utils": "test_generation.py::test_trl_gathers_the_weights_of_zero3_and_puts_hooks_back_only_without_an_exception",
    "trl.trainer": "test_trl_constructor.py::test_both_models_are_loaded_by_create_model_from_path_policy_first",
    "trl.trainer.utils": "test_trl_constructor.py::test_the_default_output_folder_is_named_like_trls",
}
"""Module inside another library, two levels down or more and not documented as an address -> the test of what it has."""

LIBRARIES = ("accelerate", "bitsandbytes", "datasets", "deepspeed", "peft", "transformers", "trl")
DOCUMENTED = ("accelerate.logging", "accelerate.utils", "datasets.exceptions")
INTERPRETERS = ("builtins", "typing", "enum", "abc")


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def defined_in_package() -> set[str]:
    """Private names that the package defines itself, on classes, modules and instances; overrides of others' excepted."""
    names = set()
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.add(node.name)
            targets = [*node.targets] if isinstance(node, ast.Assign) else []
            targets += [node.target] if isinstance(node, ast.AnnAssign) else []
            targets = [part for target in targets for part in getattr(target, "elts", [target])]
            for target in targets:
                if isinstance(target, ast.Name):
                    names.add(target.id)
                elif isinstance(target, ast.Attribute) and ast.unparse(target.value) in ("self", "cls"):
                    names.add(target.attr)
    return names - set(OVERRIDES) - set(ACCESSES)


def accesses(module: str) -> Iterator[tuple[str, int]]:
    """Private names that are read or written on any object, with their lines."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            if isinstance(node.args[1], ast.Constant):
                yield str(node.args[1].value), node.lineno
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg, node.value.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.name, node.lineno) for alias in node.names)


def foreign_accesses() -> dict[str, list[str]]:
    """Private name that no module of ours defines -> where it is accessed."""
    own, found = defined_in_package(), {}
    for module in MODULES:
        for name, line in accesses(module):
            if (is_private(name) and name not in own) or name in ACCESSES:
                found.setdefault(name, []).append(f"{module}:{line}")
    return found


def our_classes() -> set[type]:
    names = [one.name for one in pkgutil.walk_packages([str(PACKAGE)], "trl_dpo_ext.") if "__main__" not in one.name]
    classes = {
        value for name in names for value in vars(importlib.import_module(name)).values() if inspect.isclass(value)
    }
    return {one for one in classes if one.__module__.startswith("trl_dpo_ext.")}


def overrides() -> dict[str, list[str]]:
    """Method of a foreign base class -> classes of ours that define it too."""
    found: dict[str, list[str]] = {}
    for one in our_classes():
        foreign = [base for base in one.__mro__ if not base.__module__.startswith(("trl_dpo_ext.", *INTERPRETERS))]
        for name, value in vars(one).items():
            dunder = name.startswith("__") and name.endswith("__")
            if inspect.isfunction(value) and not dunder and any(name in vars(base) for base in foreign):
                found.setdefault(name, []).append(f"{one.__module__}.{one.__name__}")
    return found


def deep_imports() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in (one for module in MODULES for one in imports_of(module) if one.package in LIBRARIES):
        source = one.dotted.rpartition(".")[0]
        if "." in source and source not in DOCUMENTED:
            found.setdefault(source, []).append(str(one))
    return found


def test_every_private_access_to_another_library_has_a_contract_test() -> None:
    outside = {
        name: [place for place in places if not place.startswith(ROOMS_OF_SEAMS)]
        for name, places in foreign_accesses().items()
    }
    new = {name: places for name, places in outside.items() if places and name not in ACCESSES}
    assert not new, (
        f"private parts of other libraries; move them to _trl or distributed, or list them with a test: {new}"
    )


def test_every_listed_access_exists() -> None:
    assert not set(ACCESSES) - set(foreign_accesses()), "no longer accessed: remove them from ACCESSES"


def test_every_override_of_another_librarys_method_has_a_contract_test() -> None:
    new = {name: classes for name, classes in overrides().items() if name not in OVERRIDES}
    assert not new, f"overrides of other libraries' methods without a contract test: {new}"


def test_every_listed_override_exists() -> None:
    assert not set(OVERRIDES) - set(overrides()), "no longer overridden: remove them from OVERRIDES"


def test_every_import_from_deep_inside_another_library_has_a_contract_test() -> None:
    new = {name: places for name, places in deep_imports().items() if name not in DEEP_IMPORTS}
    assert not new, f"imports from inside other libraries without a contract test: {new}"


def test_every_listed_import_exists() -> None:
    assert not set(DEEP_IMPORTS) - set(deep_imports()), "no longer imported: remove them from DEEP_IMPORTS"


@pytest.mark.parametrize(
    "test", sorted({t for t in [*ACCESSES.values(), *OVERRIDES.values(), *DEEP_IMPORTS.values()] if t})
)
def test_every_listed_test_exists(test: str) -> None:
    file, name = test.split("::")
    names = {
        n.name
        for n in ast.walk(ast.parse((Path(__file__).parent / file).read_text()))
        if isinstance(n, ast.FunctionDef)
    }
    assert name in names, f"{test} does not exist; name the test of that fact"
