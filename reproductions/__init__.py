"""One script per table of the paper. Each trains what has no record yet and prints the paper beside ours."""
