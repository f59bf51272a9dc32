"""What a data set is: schema, keys, layout on disk, shards, query, report."""
