"""What a search works on: set up from a configuration (`setup`), then prepared by calibration (`prepare`).

`Setup` is frozen and cheap: task, units, sites, budgets, draws. `Prepared` adds what took computing.
Nothing here searches.
"""
