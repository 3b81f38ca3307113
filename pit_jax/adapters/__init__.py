"""This folder bridges to other training frameworks."""
