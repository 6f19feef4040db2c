"""From particles to photon counts with a trained flow."""

from zdc_nb.generator.encoding import ConditionScaler, decode_responses, encode_responses
from zdc_nb.generator.surrogate import (
    DivergenceError,
    Surrogate,
    load_surrogate,
    save_surrogate,
)

__all__ = [
    "ConditionScaler",
    "DivergenceError",
    "Surrogate",
    "decode_responses",
    "encode_responses",
    "load_surrogate",
    "save_surrogate",
]
