"""One HTML file that works without network: the frame of all pages, safe markup, tables, and charts as SVG.

Charts are drawn in Python, so that a page shows them without JavaScript and a test can read them; JavaScript only
adds what needs a pointer or a keyboard: values under the pointer, curves that are switched off, sorted tables.
"""

from .axes import Level, Mark
from .charts import line_chart, reliability_chart, scatter_chart
from .curves import Curve, thinned
from .frame import LARGEST, as_json, document, fitting
from .histogram import Bars, histogram
from .markup import Markup, data_text, element, join, table
from .row_list import WITHOUT_SCRIPT, kept_ends, row_list

__all__ = [
    "LARGEST",
    "WITHOUT_SCRIPT",
    "Bars",
    "Curve",
    "Level",
    "Mark",
    "Markup",
    "as_json",
    "data_text",
    "document",
    "element",
    "fitting",
    "histogram",
    "join",
    "kept_ends",
    "line_chart",
    "reliability_chart",
    "row_list",
    "scatter_chart",
    "table",
    "thinned",
]
