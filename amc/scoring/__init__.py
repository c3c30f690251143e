"""From a network to a score, and from an assignment to an evaluation; every image is counted.

Which images are drawn for what stands here as well (`draws`).
"""
