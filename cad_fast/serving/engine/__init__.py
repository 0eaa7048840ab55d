"""The engine: runs of a pipeline share passes of the denoiser, each row under its own edits. It knows no HTTP."""
