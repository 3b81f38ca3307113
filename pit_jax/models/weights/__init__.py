"""Reads and writes weights of other families, under their own names, by declarative tables.

`hugging_face` is what other folders call, with `configs` for what a `config.json` says;
`gguf_files` reads quantised weights, and `t5x` turns those of T5X's decoder. `families` has a row
for each family of transformers, with its table of `tables`, whose rows are as `rows` explains.
`arrays` fills parameters on the mesh piece by piece.
"""
