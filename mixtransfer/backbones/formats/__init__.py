"""Names of weights in published formats, and the networks of the libraries that read them; one file a family."""
