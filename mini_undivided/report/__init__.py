"""What people see: analysis of runs, tables, figures, and what a run prints before and after."""
