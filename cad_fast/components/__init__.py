"""Components: which there are, and sets of them that are ablated."""
