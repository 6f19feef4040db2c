"""How well generated responses agree with simulated ones."""
