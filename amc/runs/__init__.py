"""Searches on disk: one, created, resumed, finished and given back, and `studies` of many."""
