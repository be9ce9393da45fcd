"""What goes with a checkpoint to the Hugging Face hub: lineage, licences, a card, and the way there."""
