"""The search itself: what runs where, in which order, and what is kept of it."""
