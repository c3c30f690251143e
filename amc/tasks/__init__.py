"""Tasks: what is pruned and by what it is judged. Splits of data, readers of data sets and weights, the shipped tasks.

What users bring is checked here, before any work is done.
"""
