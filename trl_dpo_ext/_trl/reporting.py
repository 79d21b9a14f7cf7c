"""The trackers that transformers can report to."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transformers import integrations

# Trackers that transformers does not count as installed though they can be, and the package of each.
_PACKAGES = {"flyte": "flytekit", "azure_ml": "azureml", "kubeflow": "transformers"}


def trackers() -> dict[str, bool]:
    """Each tracker that `report_to` may name, and whether it is installed.

    Seam: transformers has a callback for each in `INTEGRATION_TO_CALLBACK`, whose constructor raises if its package is
    missing. `get_available_reporting_integrations` lists those installed, except flyte, and azure_ml beside mlflow;
    the callback of kubeflow needs no package.
    """
    installed = integrations.get_available_reporting_integrations()
    return {
        name: name in installed or (name in _PACKAGES and find_spec(_PACKAGES[name]) is not None)
        for name in integrations.INTEGRATION_TO_CALLBACK
    }


def tensorboard_writer(trainer: Any) -> Any:
    """The writer with which a trainer logs to TensorBoard; None while it has none.

    Seam: transformers' callback keeps it as `tb_writer`, from the start of training to its end.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, integrations.TensorBoardCallback):
            return callback.tb_writer
    return None
