"""The seqio Task of every stage: sources, preprocessors, feature converters. TensorFlow is here."""
