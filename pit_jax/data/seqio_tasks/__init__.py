"""This folder makes the seqio Task of every stage; it is where TensorFlow is imported."""
