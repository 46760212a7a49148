"""Data: sources (random access), transforms (per example), tokenizers, and the loader that makes batches of them.

Importing this package is light; TFDS and Grain are imported where they are first used.
"""
