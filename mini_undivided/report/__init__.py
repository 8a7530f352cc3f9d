"""What people see: the analysis of runs, tables, figures, and what is printed before and after a run."""
