"""A recipe becomes weights: pure functions of tensors, the engine that feeds them, and plain checkpoints."""
