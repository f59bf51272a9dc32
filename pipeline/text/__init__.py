"""Text in pixels: where it is, and an image without it."""

from __future__ import annotations

from lumid.pipeline.text.search import mask, search_text

__all__ = ["mask", "search_text"]
