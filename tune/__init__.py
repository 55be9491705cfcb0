"""Sweeps of gcsr trials: specs, the Ray Tune runner, the Parquet store, statistics, reports, command line."""
