"""This folder says what an example is, where examples come from, and how they become batches.

These are its modules, in the order of the way from plain text to arrays:

    examples                  what an example, its turns and a verdict are; folds by a hash
    progress                  how far a long loop is
    ragged                    rows of different lengths in one array, and how they are joined
    texts                     the text of many examples in one piece; folds of them
    synthetic.drafts          a synthetic family with an exact checker
    synthetic.requirements    another synthetic family
    synthetic.instructions    the splits of both
    files.json_values         the text of a JSON object -> the object, strictly
    files.json_stream         JSON that isn't in lines -> the text of each object
    files.tables              rows of parquet and Arrow files, and of Hugging Face's datasets
    files.records             files of every kind -> objects, each with its place
    files.formats             an object of a preference file -> an Example
    files.readers             files -> Examples, and a count of what was left out and why
    files.kept                what was read of big files, for later runs
    files.builders            datasets of these files, prepared once by TFDS
    files.build               the command that prepares them
    vocabularies.base         what every vocabulary offers
    vocabularies.words        bytes, and the words of a synthetic family
    vocabularies.chat_templates   a model's own chat template: turns -> a prompt
    vocabularies.tokenizer_files  the files beside a tokenizer
    vocabularies.subwords     ids of users' own tokenizers: swapped, reserved and appended ones
    vocabularies.sentence_pieces  SentencePiece models
    vocabularies.tokenizer_json   Hugging Face tokenizers
    vocabularies.load         the vocabulary that a configuration names
    splits                    groups of examples, and which split each is in
    datasets                  what a dataset is made of; its train, dev and test examples; mixtures
    layouts                   token layouts of every model's input (Appendix A of the paper)
    sequences                 what each task learns of an example's tokens
    seqio_tasks.sources       seqio's sources of examples and of sampled references
    seqio_tasks.preprocessors text -> tokens -> those sequences
    seqio_tasks.feature_converters  those features -> padded or packed model features
    seqio_tasks.tasks         the table of tasks, and a seqio Task of each
    batching                  order of rows, mixtures, packing, length buckets
    flat_arrays               arrays made piece by piece, big ones in files mapped to memory
    rows                      rows without their padding
    task_rows                 many examples at once -> the rows that seqio makes one by one
    tables                    all rows of a task, and batches of them
    reference_store           sampled references on disk, read back by index
    input_pipeline            batches in a deterministic order; what other folders call

TensorFlow and seqio are imported by seqio_tasks and files.builders, which others import inside
functions only, so everything else runs without them.
"""
