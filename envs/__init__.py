"""The world: what can be pruned, what is allowed, and what it pays.

Here live the traced graph, units, sites and choices, rules, constraints, compression (importance, slicing,
repair), the policy and the Gymnasium environment. No dataset, no file of a run, no learner may live here:
the environment is handed one `evaluate(policy)` function and knows nothing else. Imports only `hw_profiles`.
"""
