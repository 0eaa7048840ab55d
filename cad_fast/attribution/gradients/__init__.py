"""What the methods of gradients are made of: sums over passes, averages over ablations, gradients of single rows."""
