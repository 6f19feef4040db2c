"""Responses and the particles that caused them: simulated, or read from files."""

from zdc_nb.data.events import (
    FEATURES,
    Events,
    Split,
    cap,
    impact_point,
    select_subset,
    split_by_response,
)
from zdc_nb.data.readers import find_files, read_events, read_parts
from zdc_nb.data.root import write_root
from zdc_nb.data.simulation import simulate
from zdc_nb.data.validation import EventFileError, Tally

__all__ = [
    "FEATURES",
    "EventFileError",
    "Events",
    "Split",
    "Tally",
    "cap",
    "find_files",
    "impact_point",
    "read_events",
    "read_parts",
    "select_subset",
    "simulate",
    "split_by_response",
    "write_root",
]
