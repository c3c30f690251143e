"""Timing on this machine: profiles measured, checked, imported and found by name; networks timed side by side.

What times a kernel or a network is a runtime, one file each in `runtimes`; nothing else here asks for its name.
"""
