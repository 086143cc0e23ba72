"""A trained model by itself: its checkpoint is all it needs to answer about new images."""
