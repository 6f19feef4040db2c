"""Responses and the particles that caused them: simulated, or read from files."""
