"""The forms a report can take."""

from typing import Literal, get_args

__all__ = ["FORMATS", "Format"]

Format = Literal["text", "markdown", "json", "csv", "latex", "html"]
FORMATS: tuple[Format, ...] = get_args(Format)
