"""Filters for safety: what must not be learned from."""
