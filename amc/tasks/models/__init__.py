"""Reference networks for the tasks that ship with the project: the CIFAR-10 residual networks, and the small networks
of the embedded digits and of the demo's cluttered ones. They are plain `nn.Module`s, written for nothing but their
task; the core prunes whatever network a task holds and knows none of these by name.
"""
