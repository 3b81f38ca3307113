"""This folder reads preference files, by format, and has builders that prepare them with TFDS."""
