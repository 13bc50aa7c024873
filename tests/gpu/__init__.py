"""What only a GPU can show: `make test-gpu` runs these tests, and they are skipped where torch sees no GPU."""
