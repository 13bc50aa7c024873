"""The objective: rewards, returns, losses and full-vocabulary divergences, as pure functions of tensors."""
