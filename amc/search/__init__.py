"""The search on what `problem` prepared: starts, episodes (`loop`), confirmation on unseen images, the result.

Writes no file and prints nothing: `runs` and `cli` do.
"""
