"""How particles and data sets are called in figures, in tables that are shown, and in texts.

Files, parameters and the keys of tables have plain names (``k0s``); people read symbols (K⁰ₛ). They
are Unicode, which pages, titles and printed text show alike; what labels a figure has mathtext where
the font of figures would hide it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from particle import InvalidParticle, Particle, ParticleNotFound

from zdc_nb.params import PDG

__all__ = ["drawn_symbol", "symbol"]

EVERYTHING = "all species"

_RAISED = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻")
_LOWERED = str.maketrans("0123456789SLehklmnpst", "₀₁₂₃₄₅₆₇₈₉ₛₗₑₕₖₗₘₙₚₛₜ")
_OVERLINE, _MACRON = "\u0305", "\u0304"


def symbol(species: int | str) -> str:
    """The printed symbol of a species (PDG code) or of a data set or group of species (its name).

    ``n̄``, ``K⁰ₛ``; ``all species`` for ``all``; ``PDG 0`` for a code that is none, and a name that
    is none as it is.
    """
    if isinstance(species, str):
        if species not in PDG:
            return EVERYTHING if species == "all" else species
        species = PDG[species]
    try:
        name = str(Particle.from_pdgid(species).html_name)
    except (InvalidParticle, ParticleNotFound):
        return f"PDG {species}"
    # the charge first: K with S below it and 0 above is spoken, and written in a line, as K0S
    name = re.sub(r"(<SUB>.*?</SUB>)(<SUP>.*?</SUP>)", r"\2\1", name)
    name = re.sub("<SUP>(.*?)</SUP>", lambda found: _in_line(found, _RAISED, "^"), name)
    name = re.sub("<SUB>(.*?)</SUB>", lambda found: _in_line(found, _LOWERED, "_"), name)
    # fonts place a macron over a letter better than an overline
    return html.unescape(name).replace(_OVERLINE, _MACRON)


def drawn_symbol(species: int | str) -> str:
    """The same for a label of a figure, with matplotlib's mathtext where plain text is hard to read.

    In its font a bar lies in the top of a capital letter, and the small letters of K⁰ₛ and K⁰ₗ look
    alike.
    """
    name = re.sub(f"([A-Z\u0391-\u03a9]){_MACRON}", r"$\\overline{\\mathrm{\1}}$", symbol(species))
    for low, kind in (("ₛ", "S"), ("ₗ", "L")):
        name = name.replace("K⁰" + low, rf"K$^0_\mathrm{{{kind}}}$")
    return name


def _in_line(found: re.Match[str], signs: dict[int, Any], mark: str) -> str:
    text = found[1]
    return text.translate(signs) if all(ord(sign) in signs for sign in text) else mark + text
