"""From a network's forward to a program: a torch.fx graph of calls of layers and of torch's operators.

`symbolic` records it with torch.fx (asking `values` what sizes the example has), `exported` with torch.export, which
follows more, in the same form. Programs run elsewhere (`network.interpreter`), and whether one computes what the
network does is found out there (`network.graph`). A module in whose forward `numbers` must follow its channels runs its
own program (`resized`).
"""
