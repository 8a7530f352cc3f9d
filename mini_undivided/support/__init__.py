"""What is needed to run but not to understand: files, options, devices. Read the chapters first."""
