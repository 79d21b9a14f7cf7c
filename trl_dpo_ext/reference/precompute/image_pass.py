"""The reference pass over rows with images: both sides of a row, as TRL's collator makes them for training."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ... import _trl
from ...errors import InputError
from ..store.keys import unpack_keys
from ..store.store import Store
from .image_batching import ImageBatch, chosen_rows, make_image_batches
from .image_preparation import Preparation, Workers, explaining_workers, prepared
from .image_rows import ImageRows
from .pass_run import Computed, Fetch, PrecomputeStats, compute_all, peers_of
from .processes import Communicator
from .runner import default_max_tokens, fetched_later
from .sequences import batch_sequences
from .wanted import Collator


@dataclass
class ImagePass:
    """Computes rows with images and writes what the store lacks of them.

    Rows with images and rows without never share a batch: a forward of the ones calls the vision tower, which other
    processes may have to call with it.

    Raises:
        InputError: a single row does not fit in memory, or the collator fails.
        StoreWriteError: the store could not be written.
    """

    store: Store
    dataset: Any
    """With random access to rows, not tokenized."""
    columns: list[str] | None
    """What the collator reads; None for all."""
    collator: Collator
    """TRL's, without stored log-probs."""
    score: Callable[[dict[str, Any]], Fetch]
    """Starts to compute a collated batch. What it returns waits for the log-probs of the scored tokens of each row,
    chosen half first."""
    max_tokens: int
    """Token positions per batch. `run` lowers it to the smallest value of all processes, and where memory runs out."""
    images_once: bool = False
    """Whether `score` takes batches in which the images of both sides stand once."""
    workers: Workers = field(default_factory=Workers)
    synchronous_forward: bool = False
    """Whether a forward waits for those of the other processes, as under FSDP and ZeRO-3."""
    communicator: Communicator = field(default_factory=Communicator)
    title: str = ""
    """What the progress bar says."""
    disable_tqdm: bool = False
    nonfinite: list[bytes] | None = None
    """Where the keys of sequences go whose log-probs are not finite; None makes the first of them an error. After `run`
    it holds those of all processes."""

    _missing: ImageRows | None = field(default=None, init=False)

    def run(self, missing: ImageRows) -> PrecomputeStats:
        """Compute rows that the store lacks; every process calls this with its own.

        Afterwards `max_tokens` is a size that fits in memory, for use in the next pass.
        """
        self._missing = missing
        # Free memory differs between devices, but processes that share batches must make the same ones.
        self.max_tokens = min(self.communicator.gather(self.max_tokens))
        own = self._own_batches(missing)
        fillers = self._fillers(own, missing) if self.synchronous_forward else [[] for _ in own]
        with explaining_workers():
            return compute_all(
                self,
                self._prepared(list(zip(own, fillers, strict=True))),
                self._start,
                tokens=sum(batch.tokens for batches in own for batch in batches),
                expected_sequences=sum(batch.sides for batches in own for batch in batches),
                expected_tokens=sum(batch.scored for batches in own for batch in batches),
            )

    @property
    def _preparation(self) -> Preparation:
        return Preparation(self.dataset, self.columns, self.collator, self.images_once, self._missing)

    def _own_batches(self, missing: ImageRows) -> list[list[ImageBatch]]:
        """This process's batches of rows with images, and of rows without; see `peers_of`."""
        content = b"".join(getattr(missing, name).tobytes() for name in ("rows", "keys", "lacking", "tokens", "images"))
        peers = peers_of(self, hashlib.blake2b(content, digest_size=16).digest())
        mine = slice(peers.index(self.communicator.rank), None, len(peers))
        kinds = (chosen_rows(missing, has) for has in (missing.images > 0, missing.images == 0))
        return [make_image_batches(kind, self.max_tokens)[mine] for kind in kinds]

    def _fillers(self, own: list[list[ImageBatch]], missing: ImageRows) -> list[list[ImageBatch]]:
        """For each kind of rows, what this process computes while others still have batches.

        It is a row of that kind, for a forward with images calls other modules than one without; a process that has no
        such row gets another's.
        """
        counts = self.communicator.gather([len(batches) for batches in own])
        fillers: list[list[ImageBatch]] = []
        for batches, of_all in zip(own, zip(*counts, strict=True), strict=True):
            collated, error = None, None
            if len(set(of_all)) > 1:
                try:
                    collated = batches and self._preparation.collated(batches[-1].part.rows[-1:].tolist())
                except Exception as failure:
                    error = failure
                self.communicator.raise_together(error, "preparing rows for the reference pass")
                collated = next(each for each in self.communicator.gather(collated or None) if each is not None)
            filler = ImageBatch(chosen_rows(missing, slice(0)), collated)
            fillers.append([filler] * (max(of_all) - len(batches)))
        return fillers

    def _prepared(self, kinds: list[tuple[list[ImageBatch], list[ImageBatch]]]) -> Iterator[ImageBatch]:
        for batches, fillers in kinds:
            if batches:
                yield from prepared(self._preparation, self._fitting(batches), self.workers, len(batches))
            yield from fillers

    def _fitting(self, batches: list[ImageBatch]) -> Iterator[ImageBatch]:
        """Batches, cut anew where the limit was lowered before workers have taken them up."""
        for batch in batches:
            halved = batch.positions > self.max_tokens and batch.size > 1 and not self.synchronous_forward
            yield from self._fitting(batch.halves()) if halved else (batch,)

    def _start(self, batch: ImageBatch) -> Callable[[], Computed]:
        rows = batch.part.rows.tolist()
        collated = batch.collated or self._preparation.collated(rows)
        try:
            fetch = self.score(dict(collated))
        except (RuntimeError, ValueError) as error:
            if not _trl.lacks_image_tokens(error):
                raise
            raise InputError(
                f"Rows {', '.join(map(str, rows))} of the dataset have another number of image tokens than of "
                f"features, probably because max_length cuts images. Set max_length=None, or a larger one. ({error})"
            ) from error

        def computed() -> Computed:
            logps = fetch()
            return _computed(batch, collated, logps) if batch.size else Computed()

        return computed


def _computed(batch: ImageBatch, collated: Mapping[str, Any], logps: list[np.ndarray]) -> Computed:
    """Take from a batch's results what the store lacks; a side of which nothing is scored has no log-probs."""
    keys = unpack_keys(batch.part.keys.swapaxes(0, 1).reshape(-1, 2))
    lacking = batch.part.lacking.T.ravel()
    found = [
        (key, 0 if sequence is None else len(sequence.prompt), values)
        for key, sequence, values, lacks in zip(keys, batch_sequences(collated), logps, lacking, strict=True)
        if lacks
    ]
    stats = PrecomputeStats(
        computed=len(found),
        tokens=int(collated["attention_mask"].sum()),
        positions=collated["input_ids"].numel(),
        scored=sum(len(values) for _, _, values in found),
        images=batch.images * (1 if _trl.IMAGES_ONCE in collated else 2),
    )
    return Computed(found, stats)


class ImageScorer:
    """Runs a reference on collated batches with images, as TRL does for a live reference.

    Args:
        host: the trainer.
        model: what to call.
        causal: the causal model in it.
    """

    def __init__(self, host: _trl.Host, model: Any, causal: Any) -> None:
        self.host, self.model, self._tower = host, model, _trl.tower_of(causal)

    @property
    def images_once(self) -> bool:
        """Whether the vision tower can run once for both sides of a row."""
        return self._tower is not None

    def __call__(self, batch: dict[str, Any]) -> Fetch:
        """See `ImagePass.score`."""
        once = batch.pop(_trl.IMAGES_ONCE, False)
        tokens = batch["input_ids"].size(1) - 1
        spans = [
            range(0) if each is None else range(each.start, each.start + len(each.completion))
            for each in batch_sequences(batch)
        ]
        places = [row * tokens + place for row, span in enumerate(spans) for place in span]
        inputs = self.host.on_device(batch)
        with _trl.sharing_features(self._tower) if once else contextlib.nullcontext():
            logps = self.host.token_logps(self.model, inputs)
        scored = logps.flatten()[torch.tensor(places, dtype=torch.long, device=logps.device)]
        return fetched_later(scored, [len(span) for span in spans])


MOST_IMAGE_TOKENS = 16_384
"""Default positions per batch at most: enough for a GPU, and what waits for the model takes a few GB at most."""


def default_image_tokens(device: torch.device, causal: Any, images_once: bool) -> int:
    """Return the token positions per batch that fit well, as `default_max_tokens` does, if all were of images.

    The vision tower holds per patch what a language model holds per position; one token stands for several patches.

    Args:
        device: that runs the model.
        causal: the model.
        images_once: whether the images of both sides go through the tower once.
    """
    patches = _trl.patches_per_token(causal.config)
    if images_once:
        patches /= 2
    width, mlp = _trl.tower_sizes(causal.config)
    of_tower = int(patches * causal.dtype.itemsize * (10 * width + 3 * mlp))
    text = causal.config.get_text_config()
    return min(default_max_tokens(device, text, causal.dtype, at_least=of_tower), MOST_IMAGE_TOKENS)


def image_pass(host: _trl.Host, model: Any, causal: Any, max_tokens: int | None, **settings: Any) -> ImagePass:
    """Make a pass of a trainer's reference over rows with images.

    Args:
        host: the trainer.
        model: what to call.
        causal: the causal model in it.
        max_tokens: token positions per batch; None for a default.
        **settings: `store`, `dataset`, `collator`, and others of `ImagePass`.
    """
    score, args = ImageScorer(host, model, causal), host.trainer.args
    device = host.trainer.accelerator.device
    return ImagePass(
        score=score,
        columns=host.collated_columns(),
        max_tokens=max_tokens or default_image_tokens(device, causal, score.images_once),
        images_once=score.images_once,
        workers=Workers(
            args.dataloader_num_workers,
            args.dataloader_prefetch_factor,
            args.dataloader_pin_memory and device.type == "cuda",
        ),
        synchronous_forward=host.is_sharded,
        disable_tqdm=args.disable_tqdm,
        **settings,
    )
