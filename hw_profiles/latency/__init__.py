"""Latency tables: kernels that a runtime executes, profiles of their times, and the latency of a network from them.

Reading and interpolating only: timing a device stands in `bench`.
"""
