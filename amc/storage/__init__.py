"""Files on disk: written atomically, held by one process, digested; and results kept by what determines them.

Knows no format of its own.
"""
