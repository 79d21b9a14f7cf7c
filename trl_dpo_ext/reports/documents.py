"""What a report repeats of the results of `score` and `inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def facts_of(document: Mapping[str, Any]) -> dict[str, str]:
    """The main facts of a result, by name; empty where its format is not known or it is damaged."""
    kind = document["kind"].rpartition(".")[2]
    try:
        return (
            _inspected(document)
            if kind == "inspect"
            else _ranked(document)
            if "ranking" in document
            else _scored(document)
        )
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return {}


def _inspected(document: Mapping[str, Any]) -> dict[str, str]:
    found = {"data": str(document["arguments"].get("dataset") or "")}
    for name, split in document["splits"].items():
        rows = split["rows"]
        found[f"{name}, rows"] = f"{rows['kept']:,} of {rows['loaded']:,}"
        bias = split.get("length_bias", {}).get("after", {}).get("accuracy")
        if bias is not None:
            found[f"{name}, the longer answer wins"] = f"{100 * bias:.1f} %"
    for finding in document["findings"]:
        if not finding["ignored"] and finding["level"] != "note":
            found[f"{finding['level']}: {finding['name']}, {finding['split']}"] = finding["sentence"]
    return found


def _ranked(document: Mapping[str, Any]) -> dict[str, str]:
    found, ranking = _of_a_score(document), document["ranking"]
    found["completions"] = f"{ranking['completions']:,} of {ranking['prompts']:,} prompts"
    if ranking["compared"]:
        low, high = ranking["top1"]["interval"]
        share = f"{100 * ranking['top1']['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"
        found["best completion"] = f"{share} right of {ranking['compared']:,} prompts"
        found["ordered pairs"] = f"{100 * ranking['pairs']['accuracy']:.1f} % of {ranking['pairs']['n']:,}"
    return found


def _of_a_score(document: Mapping[str, Any]) -> dict[str, str]:
    arguments = document["arguments"]
    return {name: str(arguments[name]) for name in ("policy", "reference", "dataset", "split") if arguments.get(name)}


def _scored(document: Mapping[str, Any]) -> dict[str, str]:
    found, accuracy = _of_a_score(document), document["accuracy"]
    if accuracy["n"]:
        low, high = accuracy["interval"]
        share = f"{100 * accuracy['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"
        found["accuracy"] = f"{share} of {accuracy['n']:,} pairs, {accuracy['ties']:,} ties as one half"
        found["mean margin"] = f"{document['margin']['mean']:.4g}"
        found["the longer answer wins"] = f"{100 * document['length']['longer_wins']:.1f} %"
    return found
