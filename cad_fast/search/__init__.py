"""Search for the least damaging edit within a budget."""
