"""A search whose episodes draw their budgets from a range, so that one agent learns to answer for all of them.

`budgets` draws, `guides` solves the knapsack for what is drawn, `baseline` makes rewards of different budgets
comparable, `pose` is what a plan is sent with, `course` puts them together for `search.loop`.
"""
