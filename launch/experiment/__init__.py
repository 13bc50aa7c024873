"""The command `experiment`: runs methods and seeds as child processes, then evaluates and compares students."""
