"""The soak: data sets are built while everything that can fail fails, and must come out byte for byte as undisturbed."""
