"""The command `experiment`: runs every method and seed as a separate process, evaluates all students and compares them."""
