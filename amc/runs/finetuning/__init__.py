"""After the search: training the network that was found, and nothing else.

- `settings`: configuration; `schedule`: which channels are there in which epoch; `start`: the weights to begin with.
- `losses`: task loss and distillation; `parameters`: what is trained; `masks`: what stays zero; `batches`: the order of
  samples; `optimization`: optimizer, learning rate, averaged weights.
- `trainer`: the loop, and one step of it before anything is written; `state`: where it stands, on disk; `workers`: the
  same loop on Ray Train.
- `subject`: what is trained, checked; `run`: training of a run on disk, from its folder to a row of its result.

It may read tasks, scores and files; it never searches, and no gradient step is taken anywhere else (law 4 of
docs/architecture.md).
"""
