"""What looks at the source tree itself: sizes of modules, and files generated from the code."""
