"""The checks, a module for each chapter.

Answers are compared with libraries, definitions by brute force, and properties, never with another
solution; the causes of a miss are found by what typical mistakes would give.
"""
