"""The model card and the record of a run: what was trained, on what, against what, and how."""

from .mixin import ModelCardMixin
from .origin import Origin
from .record import RunLog

__all__ = ["ModelCardMixin", "Origin", "RunLog"]
