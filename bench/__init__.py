"""The harness: configuration, training, generation, results, tables and figures."""
