"""Learners: arrays in, arrays out.

- `searcher`: the `Searcher` protocol, its frozen `Plan`s, and `SearchInputs`, from which every agent is made.
- `names`: the agents by name; a new one is a file with a `Searcher` and a function that makes it, and a line there.
- `random_search`, `cma_es`, `swap`, and `ddpg` (DDPG, TD3 and SAC) with `learner`, `whole_critic`, `algorithms`,
  `actor_plan` and `noise`.
- `optuna_samplers`: Optuna's, where that library is installed.
- `settings`: what may be set of a learner.

Nothing of pruning (no networks, units, budgets) may live here. Imports nothing of ours.
"""
