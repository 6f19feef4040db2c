"""Normalizing flows for the fast simulation of calorimeters, first of all ALICE's neutron ZDC.

The rooms in the order in which data flows; each imports only from those before it, and those with
a ``|`` between them know nothing of each other:

``params | storage | hardware`` < ``detector`` < ``data | flows`` < ``generator | evaluation`` <
``training`` < ``study | bench`` < ``cli``

What users of a trained study need is here, too: :class:`zdc_nb.Generator`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zdc_nb.generator.generator import Generator

__all__ = ["Generator"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, and who imports a part of the package may not need it
    if name == "Generator":
        from zdc_nb.generator.generator import Generator  # noqa: PLC0415

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
