"""What runs: the Dask graph, training jobs, the command line."""
