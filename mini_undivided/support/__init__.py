"""What is needed to run but not to understand: files, options, devices, processors. Start with the chapters instead."""
