"""Repair: what stays of a network is refitted to the dense network's outputs, by least squares, without labels.

Layer by layer (`layerwise`), or in execution order on what the smaller network really reads (`sequential`).
"""
