"""This folder turns text into token ids and back."""
