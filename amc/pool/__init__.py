"""Work that can be divided, through one interface: in this process, or on Ray workers here or on a cluster.

Where the work is done changes nothing but the time it takes. What is done (episodes, damage curves, confirmation) is a
function that the caller passes; nothing here knows a network.
"""
