"""Edits as files: folders, model cards, the Hub, PEFT adapters, checkpoints."""
