"""Passes of models over the rows of a dataset: token log-probs in a store, by the machinery of the reference pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _trl
from ..config import DPOExtConfig
from ..errors import InputError
from ..policy.adapter import SavedAdapter
from ..reference.identity.identity import Identity
from ..reference.precompute.pass_run import PrecomputeStats
from ..reference.precompute.settings import PassSettings
from ..reference.precompute.stored import StoredLogps
from ..reference.precompute.wanted import RowKeys, row_keys
from ..reference.store.keys import unpack_keys
from ..reference.store.store import AnotherReferenceError, Store
from ..reference.store.table import LogpTable
from ..trainer import DPOExtTrainer
from .row_numbers import ROW


@dataclass(frozen=True)
class Tokenized:
    """Rows as the trainer has tokenized them, and the sequences that they become."""

    dataset: Any
    processing_class: Any
    collator: Any
    keys: RowKeys

    @property
    def numbers(self) -> list[int]:
        """The number of each row in the loaded split."""
        return self.dataset[ROW][:]


@dataclass(frozen=True)
class LogProbs:
    """Token log-probs of one model."""

    table: LogpTable
    identity: Identity
    stats: PrecomputeStats = field(default_factory=PrecomputeStats)

    @property
    def described_identity(self) -> dict[str, Any]:
        """What the log-probs depend on, as JSON."""
        return {**self.identity.keyed, "fingerprint": self.identity.fingerprint}

    def of_rows(self, keys: RowKeys) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Sum and Euclidean norm of both sides' token log-probs, (rows, 2) each; NaN where they are not finite."""
        places = self.table.index.find(keys.keys.reshape(-1, 2)).reshape(keys.scored.shape)
        places[keys.scored == 0] = -1
        flat = np.append(self.table.flat.astype(np.float64), 0)
        totals = (np.add.reduceat(values, self.table.offsets[:-1]) for values in (flat, flat * flat))
        sums, squares = (np.append(values, np.nan)[places] for values in totals)  # the last one is of none
        return sums.astype(np.float32), np.sqrt(squares).astype(np.float32)

    def of_tokens(self, keys: RowKeys, row: int) -> list[npt.NDArray[np.float32]]:
        """Token log-probs of both sides of one row, (scored tokens,) each."""
        places, counts = self.table.index.find(keys.keys[row]), keys.scored[row]
        parts = [self.table.flat[self.table.offsets[at] : self.table.offsets[at + 1]] for at in places]
        empty = [np.full(count, np.nan, np.float32) for count in counts]
        return [part if at >= 0 else nan for at, part, nan in zip(places, parts, empty, strict=True)]


@dataclass
class Model:
    """A model to run over rows: by name, by the name of an adapter, or an instance.

    Args:
        given: name or instance.
        adapter: that the name stands for.
        options: of the reference in a configuration, which describe how a model is loaded by name.
        quantization: of an adapter's base.
    """

    given: Any
    adapter: SavedAdapter | None = None
    options: dict[str, Any] = field(default_factory=dict)
    quantization: Any = None

    @property
    def is_described(self) -> bool:
        """Whether it is loaded by name without being trained: what `train` does with a described reference."""
        return isinstance(self.given, str) and self.adapter is None

    def trainer(self, args: DPOExtConfig, dataset: Any, processing_class: Any, settings: PassSettings) -> _PassTrainer:
        """A trainer whose reference is this model, with the rows' log-probs in the store that `args` name."""
        given: dict[str, Any] = {"args": args, "train_dataset": dataset, "processing_class": processing_class}
        given["settings"] = settings
        if self.is_described:
            with _trl.stub_policy():
                return _PassTrainer(self.given, **given)
        if isinstance(self.given, str):
            return _PassTrainer(self.given, quantization_config=self.quantization, **given)
        return _PassTrainer(self.given, **given)

    @property
    def described(self) -> str:
        """The model in a few words."""
        if isinstance(self.given, str):
            kind = f" ({self.adapter.kind} adapter on {self.adapter.base})" if self.adapter is not None else ""
            return self.given + kind
        return getattr(getattr(self.given, "config", None), "_name_or_path", "") or "a model in memory"

    def borrowed(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a trainer may use an instance; afterwards the instance is as it was."""
        return contextlib.nullcontext() if isinstance(self.given, str) else _trl.borrowed(self.given)


class _PassTrainer(DPOExtTrainer):
    """A trainer that is built for the pass over its rows.

    Args:
        *positional, **keywords: of the trainer.
        settings: of the pass.
    """

    def __init__(self, *positional: Any, settings: PassSettings, **keywords: Any) -> None:
        self.pass_settings = settings
        super().__init__(*positional, **keywords)


def _settings(who: str) -> PassSettings:
    """Of a pass over the rows of a score.

    Args:
        who: what the progress bar calls the model.
    """
    return PassSettings(f"Log-probs of the {who}", leaves_out_nonfinite=True)


class Pass:
    """A finished pass of one model; a context manager that frees the model.

    Args:
        model: that is run.
        config: makes the configuration, given the options that name the store.
        folder: of the store.
        dataset, processing_class: rows, tokenized or not, and their tokenizer; None for that of the model.
        who: what messages and the progress bar call the model.
    """

    def __init__(
        self,
        model: Model,
        config: Callable[..., DPOExtConfig],
        folder: Path,
        dataset: Any,
        processing_class: Any = None,
        *,
        who: str,
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(model.borrowed())
            with _named(who, folder), _trl.tokens_kept():
                args = config(ref_store=str(folder), **model.options)
                self.trainer = model.trainer(args, dataset, processing_class, _settings(who))
            self._borrowed = stack.pop_all()
        stored = self.trainer.reference.stored  # type: ignore[attr-defined]
        self.result = LogProbs(self.trainer.data_collator.logps, stored.store.identity, stored.stats)  # type: ignore[union-attr]

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, *_: object) -> None:
        trainer = self.trainer
        trainer.host.release_reference()
        del self.trainer, trainer
        self._borrowed.close()
        _trl.free_memory()

    def tokenized(self) -> Tokenized:
        """The rows that the model was run over."""
        trainer = self.trainer
        keys = row_keys(trainer.train_dataset, trainer.host.collated_columns(), self._collator)
        return Tokenized(trainer.train_dataset, trainer.processing_class, self._collator, keys)

    @property
    def _collator(self) -> Any:
        return self.trainer.data_collator.collator  # type: ignore[union-attr]

    def without_adapter(self, folder: Path, who: str) -> LogProbs:
        """Run the same weights over the same rows once more, with the adapter off.

        Args:
            folder: of the store.
            who: what messages and the progress bar call it.
        """
        trainer, producer = self.trainer, self.trainer.reference.producer  # type: ignore[attr-defined]
        with _trl.without_frozen_copy(trainer.host.unwrapped(trainer.model)), _named(who, folder):
            store = Store.open(folder, producer.identity(), read_index=False)
            stored = StoredLogps(trainer.host, store, trainer.args.precompute_ref_max_tokens, _settings(who))
            stored.fill(trainer.train_dataset, "", self._collator, producer.running)
            return LogProbs(stored.collator(self._collator).logps, store.identity, stored.stats)


@contextlib.contextmanager
def _named(who: str, folder: Path) -> Iterator[None]:
    """Let a refused store say whose log-probs it is about."""
    try:
        yield
    except AnotherReferenceError as error:
        raise InputError(
            f"{folder} holds log-probs of another {who}: {'; '.join(error.differences)}. {_REMEDY[who]}"
        ) from None


_REMEDY = {
    "policy": "Remove the folder, or set another --work_dir.",
    "reference": "Set --ref_model_name_or_path to the model of the store, or choose another --ref_store.",
}


def of_store(folder: Path, rows: Tokenized) -> LogProbs:
    """Log-probs of a store whose model is not known here, so that none can be computed.

    Raises:
        InputError: sequences are missing.
    """
    store = Store.read_only(folder)
    wanted = np.unique(rows.keys.keys[rows.keys.scored > 0], axis=0)
    missing = int(store.lacks(wanted, check_values=True).sum())
    if missing:
        raise InputError(
            f"--ref_store {folder} lacks {missing} of the {len(wanted)} sequences of this dataset, and which model "
            f"computes them is not known: the store names {store.identity.source or 'none'}. Set "
            "--ref_model_name_or_path, or fill the store first: trl-dpo-ext precompute --model_name_or_path "
            f"{store.identity.source or 'MODEL'} --ref_store {folder} with this dataset and this --max_length."
        )
    return LogProbs(store.load(unpack_keys(wanted)), store.identity, PrecomputeStats(found=len(wanted)))
