"""Training loops: the on-policy and the supervised loop, their update, data order, learning rate, log and checkpoints."""
