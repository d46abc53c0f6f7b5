"""What a file, folder, cohort table or shard set holds, and what is wrong with it. No value of a header leaves."""
