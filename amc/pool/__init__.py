"""Work that can be divided, through one interface: in this process, or on Ray workers here or on a cluster.

Who works changes nothing but the time it takes. What is done (episodes, damage curves, confirmation) is a function
that the caller hands in; nothing here knows a network.
"""
