"""How good a student is: overlap with references, exact divergences from the teacher, diversity."""
