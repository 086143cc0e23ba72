"""Studies: backbones × pretraining × tasks × hooks × fractions of the labels × seeds, run, recorded and reported."""
