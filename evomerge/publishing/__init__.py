"""What goes with a checkpoint to the Hugging Face hub: lineage, licences, the front matter of its card, the way there."""
