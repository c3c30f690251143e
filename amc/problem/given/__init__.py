"""Objects of the user's in place of names: looked at when they come in (`door`, `fit`), carried beside a configuration
that holds their names in parentheses (`objects`), and watched while they work (`watched`, `searcher`).
"""
