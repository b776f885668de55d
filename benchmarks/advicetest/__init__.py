"""What ``benchmarks/advice.py`` stands on: data sets, the sweep, and the fits of both."""
