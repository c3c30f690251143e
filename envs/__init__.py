"""The environment: what can be pruned, what is allowed, and what an episode is paid.

- `network`: the traced graph of operators; `units`: channels that go together; `regression`: least squares.
- `space`: sites and choices, assignment, policy, constraint; `importance`: which channels stay; `repair`: how the rest
  is refitted; `compression`: from a policy to a smaller network.
- `pruning_env`, `observation`, `reward`: the Gymnasium environment, what it shows and what it pays.
- `measure`: name, direction and unit of a metric; `lookup`: things by name; `parallel`: work on chunks of images.

No dataset, no file of a run and no learner may live here: the environment gets one function,
`evaluate(assignment) -> Evaluation`. Imports only `hw_profiles`.
"""
