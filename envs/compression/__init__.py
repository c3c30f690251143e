"""From a policy to a smaller, repaired network (`compress`), and what pruning one unit alone does (`damage`).

Everything that no policy changes is computed once (`preparation`). No gradient step, no label.

A new selection of weights under a pattern, or a new damage, is a file here and a line in `names`.
"""
