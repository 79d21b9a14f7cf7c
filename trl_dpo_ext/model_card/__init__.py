"""The model card of a run: what was trained, on what, against what, and how."""

from .mixin import ModelCardMixin
from .origin import Origin

__all__ = ["ModelCardMixin", "Origin"]
