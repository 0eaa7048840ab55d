"""Throughput benchmarks: every figure a ratio to peers measured in the same run."""
