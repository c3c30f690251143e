"""Importance: one score per channel of a unit. The best-scored channels stay, so kept sets are nested.

Scores read statistics and weights; they change neither.
"""
