"""How sentences about numbers are put together."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["as_list", "listed_names"]


def as_list(sentences: Iterable[str]) -> str:
    """Sentences as a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def listed_names(names: Iterable[str]) -> str:
    """Names in a sentence; "none" where there are none."""
    return ", ".join(names) or "none"
