"""Many searches, and what they say together: comparisons of agents, sweeps, tuning, Pareto fronts, agents asked."""
