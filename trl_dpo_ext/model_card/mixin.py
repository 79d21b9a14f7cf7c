"""Trainer mixin that writes the model card and the record of a run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import _trl
from ..distributed.mixin import DistributedTrainerMixin
from .card import build_card
from .origin import Origin
from .record import run_record
from .training import adapter


class ModelCardMixin(DistributedTrainerMixin):
    """Overrides of the methods that write `README.md`, to inherit from in front of TRL's trainer."""

    origin: Origin | None = None
    """How the command line started this run; None if it was started from Python."""
    resumed_from: str | None = None
    """Name of the checkpoint that the last `train` was resumed from."""

    def create_model_card(  # type: ignore[override]  # TRL's signature, not transformers'
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card of this run to `README.md` in the output folder, on the main process.

        Args:
            model_name: title of the card; the name of the repository or of the output folder by default.
            dataset_name: the training data by name, one or several: hub ids become links and metadata, of anything else
                the name alone is shown. By default, what the command line or the dataset tells.
            tags: of the card, in addition to TRL's.
        """
        make = functools.partial(build_card, self, self.origin, self.resumed_from, dataset_name)
        with _trl.card_made_by(make):
            super().create_model_card(model_name=model_name, tags=tags)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and a card beside an adapter in place of PEFT's, which holds this machine's paths.

        Seam: PEFT writes `README.md` wherever it saves an adapter.
        """
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or str(self.args.output_dir))
        if adapter(self.model) is not None and (folder / "README.md").exists():
            with _trl.temporarily(self.args, output_dir=str(folder)):
                self.create_model_card(model_name=_title(self.args.hub_model_id, folder))

    def recorded(self) -> dict[str, Any]:
        """What this run trains, on what, against what, and how, for `trl-dpo-ext report`."""
        return {"record": run_record(self)}

    def load_extra_state(self, checkpoint: Path) -> None:
        """Read the extra state of a checkpoint, and note from which one the run is resumed."""
        self.resumed_from = checkpoint.name
        super().load_extra_state(checkpoint)


def _title(hub_model_id: str | None, folder: Path) -> str:
    return hub_model_id.split("/")[-1] if hub_model_id else folder.resolve().name
