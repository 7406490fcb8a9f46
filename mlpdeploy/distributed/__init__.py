"""Prediction by many processes, here or on a Ray cluster: chunks of pictures in, one Parquet file each out."""
