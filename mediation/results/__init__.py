"""The formats: neuron tables, the attention study's JSON, tables in CSV and parquet; written and read
back."""
