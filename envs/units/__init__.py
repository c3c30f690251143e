"""Units: the channels that must stay or go together. Found by structure, verified by behaviour, physically removed.

`anatomy.dissect` is the way in. What a search may decide about units stands in `space`.
"""
