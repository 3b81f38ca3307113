"""This folder has the decoder-only network, its parts, and tables of other families' weights."""
