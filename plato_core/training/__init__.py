"""One trial: RLlib algorithms as Tune trainables, their metrics and hyperparameters."""
