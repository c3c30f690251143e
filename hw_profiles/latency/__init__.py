"""Latency tables: kernels that a runtime executes, profiles of their times, and the latency of a network from them.

What each runtime fuses and how it lays tensors out stands in `runtimes`, one file per runtime. Only reading and
interpolating: timing a device stands in `bench`.
"""
