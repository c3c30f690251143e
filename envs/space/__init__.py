"""The space of decisions: sites and their choices, the assignment of a choice to each, the policy, the constraint.

A new kind of decision is a file with a class of `sites.Site` and a finder, and a line in `kinds.KINDS`, such as
`"bits": "envs.space.bits:bits"`; a finder looks at `finders.Wanted` and returns `finders.Found`. How a decision
changes weights stands in `compression`.
"""
