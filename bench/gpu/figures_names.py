"""What figures are called that the report treats in its own way."""

AUTO, DENSE, FLOOR = "ours", "dense", "floor"
