"""The page of `inspect`: one HTML file with statistics, findings and rows, that works without network."""

from .build import page

__all__ = ["page"]
