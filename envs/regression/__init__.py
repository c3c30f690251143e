"""Least squares on calibration images: rows that a layer reads, their moments, the ridge and how it is chosen.

Arithmetic only: what is fitted to what stands in `repair`.
"""
