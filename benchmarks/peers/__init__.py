"""The other ways to have the same classes: other runtimes, exporting again, torch programs, ConSE."""
