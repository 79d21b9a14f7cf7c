"""Whether a tokenizer, or a processor's, can tokenize a run's data for its model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import AutoProcessor, GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin

from .. import _trl
from ..errors import InputError
from .models import embedding_rows, first_line

_RESIZE = "Use the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) and save both."


def check_tokenizer(
    args: Any, model: Any, config: Any, given: Any, datasets: Mapping[str, Any], ref_model: Any = None
) -> Any:
    """Check a run's tokenizer against its model and its data; return the tokenizer, or the processor around it.

    Args:
        args: the run's configuration.
        model: the policy, a model or its name.
        config: the policy's configuration; None if it could not be read, or is that of an adapter.
        given: the user's `processing_class`; None loads the one beside the model, if its configuration is known.
        datasets: by the name that messages call them, in a layout that TRL takes.
        ref_model: a model that is given as the reference, whose embeddings have to hold the same tokens.

    Raises:
        InputError: listing everything that is wrong.
    """
    if config is None and given is None:
        return None
    processing = _processing_class(args, model, given)
    rows = None if config is None else embedding_rows(model, config)
    problems = tokenizer_problems(processing, rows, args, datasets)
    theirs = embedding_rows(ref_model, ref_model.config) if hasattr(ref_model, "config") else None
    if not problems and theirs is not None and (rows is None or theirs < rows):
        problems = [
            f"ref_model does not fit the policy's tokenizer: {problem}"
            for problem in tokenizer_problems(processing, theirs, args, datasets)
        ]
    if problems:
        raise InputError(*problems)
    return processing


def _processing_class(args: Any, model: Any, given: Any) -> Any:
    """The given processing class, or the one that TRL's constructor would load beside the model."""
    if given is None:
        return _load(args, model)
    if isinstance(given, (PreTrainedTokenizerBase, ProcessorMixin)):
        return given
    raise InputError(
        f"processing_class must be a tokenizer or a processor of transformers; got {type(given).__name__}. Load it "
        "with AutoTokenizer.from_pretrained(...)."
    )


def _load(args: Any, model: Any) -> Any:
    """Load a processing class as TRL does."""
    by_name = isinstance(model, str)
    name = model if by_name else model.config._name_or_path
    if not name:
        raise InputError("No tokenizer: the model was not loaded from a folder. Pass processing_class.")
    return load_processing_class(args, name, (args.model_init_kwargs or {}).get("revision") if by_name else None)


def load_processing_class(args: Any, name: str, revision: str | None) -> Any:
    """Load the tokenizer or processor of a model, as TRL does.

    Args:
        args: the run's configuration.
        name: of the model.
        revision: of the model; None for the newest.

    Raises:
        InputError: there is none.
    """
    try:
        found = AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(
            f"The tokenizer of {name} could not be loaded: {first_line(error)} Save it there with "
            "tokenizer.save_pretrained, or pass processing_class to the trainer."
        ) from None
    if not isinstance(found, (PreTrainedTokenizerBase, ProcessorMixin)):
        raise InputError(f"{name} has a {type(found).__name__} and no tokenizer. Save the tokenizer there.")
    return found


def eos_ids(model: Any, args: Any = None, revision: str | None = None) -> list[int]:
    """Return the tokens that end a sequence by a model's generation configuration; nothing where it has none.

    Args:
        model: a model, or its name.
        args: the run's configuration, which may name a revision.
        revision: of the model.
    """
    config = getattr(model, "generation_config", None)
    if isinstance(model, str):
        revision = revision or (getattr(args, "model_init_kwargs", None) or {}).get("revision")
        try:
            config = GenerationConfig.from_pretrained(model, revision=revision or "main")
        except (OSError, ValueError):
            return []
    found = getattr(config, "eos_token_id", None)
    return [found] if isinstance(found, int) else list(found or ())


def tokenizer_problems(processing: Any, rows: int | None, args: Any, datasets: Mapping[str, Any]) -> list[str]:
    """Return why data cannot be tokenized for a model.

    Args:
        processing: a tokenizer or a processor.
        rows: how many tokens the model has embeddings for; None if that is not known.
        args: the run's configuration.
        datasets: by the name that messages call them; what is no dataset is left out.
    """
    tokenizer = processing.tokenizer if isinstance(processing, ProcessorMixin) else processing
    datasets = {name: part for name, part in datasets.items() if isinstance(part, (Dataset, IterableDataset))}
    first = {name: row for name, part in datasets.items() if (row := next(iter(part), None)) is not None}
    messages = [name for name, row in first.items() if isinstance(row.get("chosen"), list)]
    texts = [name for name, row in first.items() if isinstance(row.get("chosen"), str)]
    needs_template = [
        name for name in messages if "chat_template" not in (first[name].get("chat_template_kwargs") or {})
    ]
    problems = [*_special_problems(tokenizer, args, texts), *_template_problems(processing, needs_template)]
    if not isinstance(processing, ProcessorMixin):
        problems += [_images_unread(name, row) for name, row in first.items() if _trl.image_columns(row)]
    if rows is not None:
        template = str(getattr(processing, "chat_template", None) or "") if messages else ""
        problems += _embedding_problems(tokenizer, rows, args, template, datasets)
    return problems


def _images_unread(name: str, row: Mapping[str, Any]) -> str:
    column = _trl.image_columns(row)[0]
    return (
        f"{name} has the column {column!r}, and the model reads texts alone: its processing_class is a tokenizer. Use "
        f"a vision-language model with its processor, or remove the column (dataset.remove_columns({column!r}))."
    )


def _padding(tokenizer: Any, args: Any) -> str | None:
    """The token that TRL pads with."""
    return args.pad_token or tokenizer.pad_token or tokenizer.eos_token


def _special_problems(tokenizer: Any, args: Any, texts: list[str]) -> list[str]:
    pad, problems = _padding(tokenizer, args), []
    if pad is None:
        problems.append(
            "The tokenizer has neither a pad token nor an EOS token, so batches cannot be padded. Set "
            "tokenizer.pad_token and tokenizer.eos_token."
        )
    elif pad not in tokenizer.get_vocab():
        problems.append(
            f"The pad token {pad!r} is not in the tokenizer's vocabulary. Set tokenizer.pad_token to a token that is."
        )
    if texts and pad is not None and tokenizer.eos_token is None:
        problems.append(
            f"The tokenizer has no EOS token, which ends every completion of text data ({', '.join(texts)}). Set "
            "tokenizer.eos_token."
        )
    return problems


def _template_problems(processing: Any, datasets: list[str]) -> list[str]:
    if not datasets or getattr(processing, "chat_template", None):
        return []
    names = " and ".join(datasets)
    return [
        f"{names} {'has' if len(datasets) == 1 else 'have'} messages, but the {_kind(processing)} has no chat "
        "template. Use that of an instruction-tuned model, set its chat_template (chat_template.jinja in the model's "
        "folder), or pass texts."
    ]


def _kind(processing: Any) -> str:
    return "processor" if isinstance(processing, ProcessorMixin) else "tokenizer"


def _embedding_problems(tokenizer: Any, rows: int, args: Any, template: str, datasets: Mapping[str, Any]) -> list[str]:
    """Return which tokens that the run uses have no embedding. Published tokenizers may have unused ones beyond it."""
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return []
    used = _use_of(tokenizer, set(beyond), args, template, datasets)
    if used is None and tokenizer.vocab_size <= rows:
        return []
    example = f"{used[0]!r} (id {beyond[used[0]]}), {used[1]}, has no embedding" if used else "the others have none"
    return [f"The tokenizer has {len(tokenizer)} tokens and the model embeddings for {rows}: {example}. {_RESIZE}"]


def _use_of(
    tokenizer: Any, beyond: set[str], args: Any, template: str, datasets: Mapping[str, Any]
) -> tuple[str, str] | None:
    """The first of the tokens that a run uses, and where."""
    special = {"the pad token": _padding(tokenizer, args), "the EOS token": tokenizer.eos_token}
    special["the BOS token"] = tokenizer.bos_token
    for what, token in special.items():
        if token in beyond:
            return str(token), what
    added = sorted(beyond & set(tokenizer.get_added_vocab()))
    for token in added:
        if token in template:
            return token, "which the chat template writes"
    for name, dataset in datasets.items():
        for token in added:
            if any(_contains(text, token) for text in _texts(dataset)):
                return token, f"which is in {name}"
    return None


def _contains(texts: pa.Array | str, token: str) -> bool:
    if isinstance(texts, str):
        return token in texts
    compute: Any = pc  # its functions are made at run time
    return compute.any(compute.match_substring(texts, token)).as_py() or False


def _texts(dataset: Any) -> Iterator[pa.Array | str]:
    """All texts of a dataset, in arrays; of a streamed one, those of the first row."""
    if not isinstance(dataset, Dataset):
        yield json.dumps(next(iter(dataset), None), ensure_ascii=False, default=str)
        return
    stored: Any = dataset.with_format("arrow")
    for table in stored.iter(1000):
        for column in table.columns:
            for chunk in column.chunks:
                yield from _leaves(chunk)


def _leaves(array: Any) -> Iterator[pa.Array]:
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield array
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _leaves(array.flatten())
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            yield from _leaves(field)
