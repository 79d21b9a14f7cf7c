"""What tokens look like: nothing of a text is lost, and a sound text shows no replacement characters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import tiny
from trl_dpo_ext.inspection.terminal_rows import visible
from trl_dpo_ext.inspection.token_kinds import TokenKinds

TEXTS = ["yes it is", "über 👩‍👩‍👧 naïve", "日本語 のテキスト", "مرحبا بالعالم", "a\n\tb  c "]


def byte_level() -> Any:
    """Every byte beyond ASCII is a token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["yes it is"], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def metaspace() -> Any:
    """Decoded alone, a word loses its blank."""
    vocabulary = {
        "<unk>": 0,
        "▁": 1,
        "▁yes": 2,
        "▁it": 3,
        "s": 4,
        **{f"<0x{byte:02X}>": 5 + byte for byte in range(256)},
    }
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_the_texts_of_tokens_make_up_the_text(make: Any, text: str) -> None:
    token = make()
    ids = token(text)["input_ids"]
    shown = TokenKinds(token).texts(ids)
    assert len(shown) == len(ids)
    assert "".join(piece or "" for piece in shown) == token.decode(ids)
    assert "\ufffd" not in "".join(piece or "" for piece in shown)


def test_words_keep_their_blanks() -> None:
    token = tiny.tokenizer()
    kinds = TokenKinds(token)
    ids = token("yes it is <eos>")["input_ids"]
    assert kinds.texts(ids) == ["yes", " it", " is", " <eos>"]
    assert kinds.texts(ids[2:], ids[:2]) == [" is", " <eos>"]
    assert TokenKinds(metaspace()).texts([2, 3, 4]) == ["yes", " it", "s"]


def test_a_character_that_is_cut_is_shown_as_bytes() -> None:
    token = byte_level()
    ids = token("日")["input_ids"]
    assert len(ids) == 3
    assert TokenKinds(token).texts(ids) == ["日", None, None]
    cut = TokenKinds(token).texts(ids[:2])
    assert len(cut) == 2
    assert cut == ["<0xE6>", "<0x97>"]


@pytest.mark.parametrize("make", [byte_level, metaspace])
@pytest.mark.parametrize("text", ["\ufffd", "yes \ufffd it", "\ufffd\ufffd", "日\ufffd"])
def test_a_replacement_character_of_the_text_is_shown(make: Any, text: str) -> None:
    token = make()
    ids = token(text)["input_ids"]
    shown = "".join(piece or "" for piece in TokenKinds(token).texts(ids))
    assert shown == token.decode(ids)
    assert shown.count("\ufffd") == text.count("\ufffd")


def test_joiners_are_shown_as_they_are() -> None:
    assert visible(["👩‍👧", " می‌روم", "\u202e"]) == "👩‍👧 می‌روم<U+202E>"


def test_blanks_are_known_by_their_text() -> None:
    token = byte_level()
    kinds = TokenKinds(token)
    ids = token(" \n a\t")["input_ids"]
    blank = kinds.is_blank(np.array(ids))
    assert [not token.decode([index]).strip() for index in ids] == blank.tolist()
    assert 0 < blank.sum() < len(ids)
