"""What a layer costs on a device.

Here live the layout of a network as hardware sees it, the costs counted on it, and (as data) measured
profiles. Nothing of pruning or learning may live here. Imports nothing of ours.
"""
