"""The space of decisions: sites and their choices, the assignment of a choice to each, the policy, the constraint.

A new kind of decision over widths or patterns is a file with a class of `sites.Site` and a finder, and a line in
`kinds.KINDS`; a finder looks at `finders.Wanted` and returns `finders.Found`. One that decides something else (bits)
also extends what is decided (`sites.Decisions`, `sites.WidthsDraft`), the policy, and `Compressor.policy_of`. How a
decision changes weights stands in `compression`.
"""
