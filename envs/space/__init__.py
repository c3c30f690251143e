"""The space of decisions: sites and their choices, the assignment of a choice to each, the policy, the constraint.

A new kind of decision is a class of sites here. How a decision changes weights stands in `compression`.
"""
