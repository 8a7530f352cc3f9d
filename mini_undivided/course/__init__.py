"""Ten assignments on the chapters: a student's copy, checks that explain, and grading.

`docs/exercises.md` is the handout. Nothing else of the project imports this package.
"""
