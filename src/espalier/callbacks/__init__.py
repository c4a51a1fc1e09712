"""Pruning in somebody else's training loop; each module needs its own library.

`espalier.callbacks.lightning` and `espalier.callbacks.transformers` have the same two callbacks, `Prune` and
`WatchMask`, and `HoldMasks`, which makes a `Prune` for masks that are there already.
"""
