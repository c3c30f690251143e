"""A search whose episodes draw their budgets from a range, so that one agent learns to answer for all of them.

`budgets` draws, `guides` solves the knapsack for what is drawn, `baseline` makes rewards of different budgets
comparable, `environment` is what is played, `pose` is what a plan is sent with, and `course` puts them together for
`search.loop`. `surrogate` is what all episodes say of whole assignments, `taught` what another search has learned.
"""
