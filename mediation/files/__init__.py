"""Whole files, run folders with their manifests and shards, pinned downloads. Imports no other room."""
