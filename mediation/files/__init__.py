"""Whole files, run folders with their manifests and shards, pinned downloads. Imports nothing else of the house."""
