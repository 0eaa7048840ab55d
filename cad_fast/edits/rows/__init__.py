"""Rows of a denoiser's calls under edits of their own."""
