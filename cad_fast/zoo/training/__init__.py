"""How the demo models were made."""
