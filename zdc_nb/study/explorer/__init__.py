"""One particle at a time: what is simulated of it, and what the models of a finished study draw."""

from zdc_nb.study.explorer.controls import show_levels, show_responses
from zdc_nb.study.explorer.explorer import Explorer, open_explorer

__all__ = ["Explorer", "open_explorer", "show_levels", "show_responses"]
