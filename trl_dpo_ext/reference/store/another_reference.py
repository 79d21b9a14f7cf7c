"""What is said of a store whose reference is not that of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...errors import InputError
from .manifest import read_manifest


class AnotherReferenceError(InputError):
    """A store was computed with another reference than the one that it is opened for.

    Attributes:
        differences: fields of the identities that differ, in words.
    """

    def __init__(self, folder: Path, differences: list[str]) -> None:
        super().__init__(
            f"The reference store {folder} was computed with another reference: {'; '.join(differences)}. Choose "
            "another --ref_store directory, or use the settings that the store was computed with."
        )
        self.differences = differences


def check_processor(folder: Path, processor: str) -> None:
    """Compare the processor of a run with that of a store, before the run's reference is known.

    Args:
        folder: of the store; it may be absent.
        processor: settings of the processor that the run reads images with, from `processor_settings`.

    Raises:
        AnotherReferenceError: naming the settings that differ.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    ours = dataclasses.replace(manifest.identity, processor=processor)
    differences = ours.processor_differences(manifest.identity)
    if differences:
        raise AnotherReferenceError(folder, differences)
