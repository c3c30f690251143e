"""Residual branches: x + f(x) with all of f gone, a constant in its place. Found by structure (`found`), tried
(`trial`), removed (`branch`) by plain modules (`modules`); the traced program without them stands in `program`.
"""
