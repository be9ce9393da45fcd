"""Who is told what goes on: a live view or lines on stderr, JSON events, Weights & Biases; and signals to end it."""
