"""Captions of whole data sets: folders, lists and shards in, sidecars, tables and shards out."""
