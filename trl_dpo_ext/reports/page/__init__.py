"""The page of `report`: one HTML file with arguments, curves, alarms and samples of one run or several."""

from .build import page

__all__ = ["page"]
