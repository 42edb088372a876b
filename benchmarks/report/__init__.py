"""One page about any number of benchmark results: merged, then said in cells, words and charts."""
