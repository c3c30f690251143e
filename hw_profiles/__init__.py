"""What a layer costs on a device.

Here live the layout of a network as hardware sees it, the costs counted on it (`cost.COSTS`: a new one is a class and a
line), measured profiles (as data), the timing loop that runs here and on devices (`rounds`), and passes over what is
measured, disturbed entries timed again (`passes`). Nothing of pruning or
learning may live here. Imports nothing of ours.
"""
