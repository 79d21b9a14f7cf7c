"""The option of a run that starts from an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from ..option_docs import document_options


@document_options
@dataclass(kw_only=True)
class PolicyOptions:
    """Option of `DPOExtConfig` for a model that is given as the name of an adapter.

    Args:
        > Starting from an adapter

        merge_adapter: Merge the adapter that the model's name stands for into its base before training. The merged
            weights are the reference; all of them train, or a new adapter on top of them. Default: train the adapter
            further, with a frozen copy of it as the reference.
    """

    merge_adapter: bool = False
