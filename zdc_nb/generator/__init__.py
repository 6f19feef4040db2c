"""From particles to photon counts with a trained flow."""

from zdc_nb.generator.encoding import (
    ConditionScaler,
    centre_in_flow,
    channel_fractions,
    channels_and_centre,
    decode_responses,
    encode_responses,
    flow_dim,
    split_cells,
)
from zdc_nb.generator.likelihood import (
    binomial_nats,
    density_nats,
    divergence_from_teacher,
    has_nats,
    nats_of,
)
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
    "binomial_nats",
    "centre_in_flow",
    "channel_fractions",
    "channels_and_centre",
    "decode_responses",
    "density_nats",
    "divergence_from_teacher",
    "encode_responses",
    "flow_dim",
    "has_nats",
    "load_surrogate",
    "nats_of",
    "save_surrogate",
    "split_cells",
]
