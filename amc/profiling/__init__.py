"""Timing on this machine: profiles measured, checked, imported and found by name; networks timed side by side."""
