"""Metrics as single papers and benchmarks define them: pure functions of rankings, masks and boxes."""
