"""Serving: every request with its own concepts erased or amplified, in one batch."""
