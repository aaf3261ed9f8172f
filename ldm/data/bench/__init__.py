"""Benchmarks: COCOEE, others laid out like it, and the squares of real pictures that FID compares with."""
