"""From files to batches: readers, cohort table, shard building and reading, order, augmentation."""
