"""skorch's own tests pass with CFLLNet, but for what the method forbids."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Tests that fail, by the reason why they must.
REASONS = {
    "the message or the repr quotes the name of skorch's class": [
        "test_not_init_raises",
        "test_not_fitted_raises",
        "test_repr_uninitialized_works",
        "test_repr_initialized_works",
        "test_repr_fitted_works",
    ],
    "class labels, their probabilities or their accuracy; squared error predicts numbers": [
        "test_net_learns",
        "test_pickle_save_load",
        "test_save_load_state_dict_file",
        "test_save_load_state_dict_str",
        "test_clone_results_in_uninitialized_net",
        "test_forward",
        "test_multioutput_forward",
        "test_multioutput_predict",
        "test_multiouput_predict_proba",
        "test_predict_nonlinearity_called_with_predict",
        "test_predict_nonlinearity_called_with_predict_proba",
        "test_history_default_keys",
        "test_callback_keeps_order",
        "test_fit_with_dataset",
        "test_fit_with_dataset_without_explicit_y",
        "test_fit_lbfgs_optimizer",
        "test_change_get_loss",
        "test_binary_classifier_with_compile",
    ],
    "another loss than squared error, which has no closed form": [
        "test_criterion_non_module",
        "test_criterion_training_set_correctly",
        "test_criterion_is_not_a_torch_module",
        "test_passes_y_to_train_split_when_not_none",
        "test_customize_net_with_custom_dataset_that_returns_3_values",
        "test_save_load_state_dict_file_with_history_optimizer_criterion",
        "test_criterion_params_passed_to_optimizer_if_any",
        "test_predict_nonlinearity_is_identity_with_multiple_criteria",
        "test_set_params_on_custom_criterion_triggers_reinit_of_optimizer",
    ],
    "predictions and targets of different lengths cannot be solved for": [
        "test_net_variable_prediction_lengths",
        "test_net_variable_label_lengths",
    ],
    "the last layer is solved once more after an epoch: one forward pass more is counted": [
        "test_fit_params_passed_to_module",
        "test_fit_params_passed_to_module_in_pipeline",
        "test_fit_with_extra_params_and_routing",
        "test_partial_fit_with_extra_params_and_routing",
    ],
    "module_ holds the module and the last layer; the latter is solved, not trained": [
        "test_callback_on_grad_computed",
        "test_modules_reinit_when_both_initialized_but_custom_module_changed",
        "test_custom_module_is_init_when_default_module_already_is",
        "test_custom_module_params_passed_to_optimizer",
        "test_custom_optimizer_performs_updates",
        "test_load_cuda_params_to_cpu",
    ],
    "only the module is compiled, in place": [
        "test_with_compile_default",
        "test_with_compile_extra_params",
        "test_compile_called_after_set_params",
        "test_compile_called_after_set_params_on_compile_param",
        "test_fit_and_predict_with_compile",
    ],
    "CFLLNet takes more: sample weights as a third entry, inputs alone, a target without its "
    "own dimension": [
        "test_fit_with_dataset_three_items_error",
        "test_predict_with_dataset_three_items_error",
        "test_predict_with_dataset_one_item_error",
        "test_dimension_mismatch_warning",
    ],
    "batches of even size, and no records of them where nobody listens": [
        "test_multioutput_forward_iter",
        "test_batch_size_neg_1_uses_whole_dataset",
    ],
    "a device that does not exist, whose random numbers cannot be seeded": [
        "test_moving_custom_modules_to_device",
        "test_set_params_on_custom_module_preserves_its_device",
    ],
    "the file that it reads is not in the wheel": ["test_pickle_load"],
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("skorch.tests") is None, reason="skorch came without its tests"
)
def test_skorchs_own_tests_pass_but_for_what_the_method_forbids(tmp_path):
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-W", "ignore"]
    command += ["-p", "skorch_suite_plugin", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--pyargs", "skorch.tests.test_net", "skorch.tests.test_regressor"]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    ).stdout
    excused = {name for names in REASONS.values() for name in names}
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", found, re.MULTILINE))
    assert failed <= excused, sorted(failed - excused)
    passed = re.search(r"(\d+) passed", found)
    assert passed is not None and int(passed[1]) >= 210, found[-2000:]
