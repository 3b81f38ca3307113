"""Preference files: their formats, their readers, and builders that prepare them with TFDS."""
