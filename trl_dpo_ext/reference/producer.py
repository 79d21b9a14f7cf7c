"""Which model computes reference log-probs: for each batch of a live reference, or for what a store lacks.

A producer that cannot compute them any more raises `InputError`. It is never replaced by another model.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from .. import _trl
from ..errors import InputError
from .corrected import RunCorrection, with_correction
from .correction.layers import correction_of
from .identity.identify import identify
from .identity.identity import Identity
from .identity.unchanged import WeightsState
from .identity.weights import shared_weights, trained_base_weights
from .model.clone import frozen_copy
from .model.loading import files_of
from .model.resolve import is_replicated
from .model.spec import ReferenceSpec


class Producer(abc.ABC):
    """A model that computes reference log-probs."""

    host: _trl.Host
    """The trainer, set before TRL's constructor runs."""
    is_initial_policy: bool = True
    """Whether the model is meant to equal the policy before training."""
    switches_adapters: bool = False
    """Whether the model is the policy with its adapter off, or with a frozen copy of it."""
    is_replicated: bool = False
    """Whether the model stays unsharded on each device under FSDP and DeepSpeed."""
    _state: WeightsState | None = None
    """Of the weights that were identified; None where an engine moves and casts them, or they are read from files."""

    def load(self) -> Any:
        """The model for TRL's constructor; None leaves it to TRL."""
        return None

    def load_unless_on_demand(self) -> Any:
        """The model for TRL's constructor, unless `running` can load it later."""
        return self.load()

    @abc.abstractmethod
    def running(self) -> AbstractContextManager[tuple[Any, Any]]:
        """Yield what to call, and the causal model in it, in evaluation mode.

        Raises:
            InputError: the model is not available any more.
        """

    def release(self) -> None:  # noqa: B027 (a policy has nothing to free)
        """Free the model, if it takes memory beside the policy."""

    def training_begins(self) -> None:
        """Free what is only needed before training; the policy is about to change."""
        self.release()

    def correct(self) -> None:  # noqa: B027 (of a quantized reference alone)
        """Correct the error of a loaded reference, if the run asks for that; every process calls this."""

    def check_fixed(self) -> None:
        """Check that training the policy does not change a live reference.

        Raises:
            InputError: they have weights in common that are trained.
        """
        shared = shared_weights(self.host.models())
        if shared:
            raise InputError(
                f"ref_model would change with the policy: they have {len(shared)} trained weights in common (first: "
                f"{shared[0]}). Pass a copy, such as load_reference(ref_model), or leave ref_model out to have the "
                "policy's start as reference."
            )

    def identity(self) -> Identity:
        """Which reference this is, for the store; every process calls this, before training."""
        return self._cast(self._identity_of_model(None, None))

    def _identity_of_model(self, source: str | None, revision: str | None) -> Identity:
        """The identity of the model in memory, or of its files where it was loaded from `source`."""
        module = self.host.reference_module()
        causal = self.host.causal_model(module)
        if _trl.active_inside(module):
            source = None  # the weights in memory are not those of the files
        compute_dtype = self.host.compute_dtype(causal)
        adapter = self.host.reference_adapter()
        if not self.host.casts_parameters():
            self._state = WeightsState(module, adapter)
        # One process reads the weights for all, unless each holds a part of them.
        mine = None
        if self.host.is_main_process or (source is None and self.host.is_sharded):
            mine = identify(
                module,
                source=source,
                revision=revision,
                adapter=adapter,
                compute_dtype=compute_dtype,
            )
        return _trl.gather_object(mine)[0]

    def _check_unchanged(self) -> None:
        """Refuse a pass with weights that are not the identified ones any more.

        Raises:
            InputError: somebody has changed, cast or replaced the reference since the trainer was created.
        """
        if self._state is not None and not self._state.holds_for(self.host.reference_module()):
            raise InputError(
                "Cannot compute the missing reference log-probs: the reference's weights have changed since this "
                "trainer was created (trained, loaded, merged, or cast as bf16_full_eval does). Pass this dataset as "
                "eval_dataset when creating the trainer, or run `trl-dpo-ext precompute` with it."
            )

    def _cast(self, identity: Identity) -> Identity:
        """The identity of parameters that the distributed engine keeps in the dtype of the forward."""
        if self.is_replicated or not self.host.casts_parameters():
            return identity
        return dataclasses.replace(identity, dtype=identity.compute_dtype)


class InitialPolicy(Producer):
    """The policy before training: the reference of full fine-tuning, for a store alone.

    Args:
        name: folder or hub id that the policy is loaded from; None for an instance.
        revision: of the checkpoint.
    """

    def __init__(self, name: str | None, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self._trains = False

    def identity(self) -> Identity:
        """See `Producer.identity`."""
        return self._cast(self._identity_of_model(self.name, self.revision))

    def running(self) -> AbstractContextManager[tuple[Any, Any]]:
        """See `Producer.running`."""
        if self._trains or self.host.has_trained:  # the step counter starts again with each `train`
            raise InputError(
                "Cannot compute the missing reference log-probs: the reference was the initial policy, which has since "
                "been trained. Pass this dataset as eval_dataset when creating the trainer, or run `trl-dpo-ext "
                "precompute` with it."
            )
        self._check_unchanged()
        return self.host.policy_for_pass()

    def training_begins(self) -> None:
        """See `Producer.training_begins`."""
        self._trains = True


class AdapterBase(InitialPolicy):
    """The policy with its adapter off, or with the frozen copy of the adapter that training started from."""

    switches_adapters = True

    def check_fixed(self) -> None:
        """See `Producer.check_fixed`."""
        trained = trained_base_weights(self.host.reference_module())
        if trained:
            raise InputError(
                f"The reference is the policy without its adapter, but training would change {len(trained)} weights "
                f"outside the adapter too (first: {trained[0]}), as bias='lora_only', bias='all' and requires_grad_ on "
                "the base do. Set precompute_ref_log_probs, which stores the reference's log-probs before training, or "
                "train the adapter alone (bias='none')."
            )

    def running(self) -> AbstractContextManager[tuple[Any, Any]]:
        """See `Producer.running`; this reference is available at any step, unless its own weights are trained."""
        if self._trains and trained_base_weights(self.host.reference_module()):
            raise InputError(
                "Cannot compute the missing reference log-probs: the reference is the policy without its adapter, and "
                "weights outside the adapter are trained too (such as bias='all', or requires_grad_ on the base). "
                "Pass this dataset as eval_dataset when creating the trainer, or run `trl-dpo-ext precompute` with it."
            )
        self._check_unchanged()
        return self.host.policy_for_pass()


class PolicyStart(Producer):
    """A second model with the policy's weights: the live reference of full fine-tuning.

    It is a copy of the policy that the trainer was given, whose weights in memory may differ from those of its
    checkpoint. TRL loads the checkpoint itself where the policy is given by name, or cannot be copied.

    Args:
        policy: a model, or its name.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = None if isinstance(policy, str) else policy

    def load(self) -> Any:
        """See `Producer.load`."""
        policy, self.policy = self.policy, None
        return None if policy is None else frozen_copy(policy)

    def running(self) -> AbstractContextManager[tuple[Any, Any]]:
        """See `Producer.running`."""
        return self.host.reference_model_for_pass()


class ReferenceModel(Producer):
    """A model apart from the policy: one that was given, or one that a `ReferenceSpec` describes.

    Args:
        args: the configuration.
        given: the user's `ref_model`; None with `spec`.
        spec: how to load the model; None with `given`.
        correction: of the described model's quantization error; None for none.
    """

    is_initial_policy = False

    def __init__(
        self,
        args: Any,
        given: Any = None,
        spec: ReferenceSpec | None = None,
        correction: RunCorrection | None = None,
    ) -> None:
        self.args, self.given, self.spec, self.correction = args, given, spec, correction
        self.is_replicated = is_replicated(args, given if spec is None else spec)
        self._identity: Identity | None = None
        self._files: tuple[str | None, str | None] = (None, None)  # name and revision

    @property
    def _by_name(self) -> ReferenceSpec | None:
        return self.spec if self.spec is not None and self.spec.by_name else None

    def load(self) -> Any:
        """The given model, or the described one."""
        model = self.given if self.spec is None else self.spec.load()
        self.given = None  # the trainer holds it now, and frees it
        self._files = files_of(model)
        return model

    def load_unless_on_demand(self) -> Any:
        """See `Producer.load_unless_on_demand`: a checkpoint can be loaded at any time, a model in memory cannot."""
        return None if self._by_name else _trl.without_compilation(self.load())

    def identity(self) -> Identity:
        """See `Producer.identity`. A described checkpoint is identified by its files, without loading it."""
        if self._by_name is not None:
            self._identity = self._identity_of_files()
            if self._identity is not None:
                return self._cast(self._identity)
            self.host.trainer.ref_model = self._loaded()  # its files are not on this machine yet
        self.correct()
        causal = self.host.causal_model(self.host.reference_module())
        identity = with_correction(self._identity_of_model(*self._files), correction_of(causal))
        return self._cast(identity)

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple[Any, Any]]:
        """See `Producer.running`."""
        if self.host.trainer.ref_model is not None:
            self._check_unchanged()
            with self.host.reference_model_for_pass() as given:
                yield given
        elif self._by_name is not None:
            if self._identity is not None and self._identity != self._identity_of_files():
                raise InputError(
                    f"Cannot compute the missing reference log-probs: the files of {self._by_name.settings['model']} "
                    "have changed since this trainer was created, so they are another reference now. Restore them, or "
                    "create a new trainer."
                )
            with self.host.model_for_pass(self._loaded()) as given:
                yield given
        else:
            raise InputError(
                "Cannot compute the missing reference log-probs: the reference model was released after the reference "
                "pass. Pass this dataset as eval_dataset when creating the trainer, or create a new trainer with the "
                "same ref_model."
            )

    def correct(self) -> None:
        """See `Producer.correct`."""
        if self.correction is not None and self.host.trainer.ref_model is not None:
            self.correction.apply(self.host, self.host.causal_model(self.host.trainer.ref_model))

    def release(self) -> None:
        """See `Producer.release`."""
        self.host.release_reference()

    def training_begins(self) -> None:
        """See `Producer.training_begins`."""
        if self.correction is not None:
            self.correction.policy_trains = True
        super().training_begins()

    def _identity_of_files(self) -> Identity | None:
        """The identity of the described checkpoint; None if its files are not on this machine."""
        assert self._by_name is not None
        mine = self._by_name.identity(self.host.autocast_dtype()) if self.host.is_main_process else None
        identity = _trl.gather_object(mine)[0]
        if identity is None or self.correction is None:
            return identity
        return with_correction(identity, self.correction.described(self.host))

    def _loaded(self) -> Any:
        assert self._by_name is not None
        loaded = self._by_name.load()
        self._files = files_of(loaded)
        model = self.host.placed(_trl.with_head(loaded), self.is_replicated)
        if self.correction is not None:
            self.correction.apply(self.host, self.host.causal_model(model))
        return model
