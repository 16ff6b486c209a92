"""Benchmarks of dmesr. Each runs alone, compares itself with a peer in the same run, and writes JSON."""
