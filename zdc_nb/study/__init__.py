"""A study: its stages, their artefacts, and the report."""
