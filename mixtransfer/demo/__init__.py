"""The demonstration behind ``make demo``: a pretrained backbone against one from scratch, on the built-in scenes."""
