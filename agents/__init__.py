"""Learners: arrays in, arrays out.

Here live the `Searcher` protocol, its frozen `Plan`s and the algorithms that fit it. Nothing of pruning
(no networks, units, budgets) may live here. Imports nothing of ours. `settings` is what a recipe may say of them.
"""
