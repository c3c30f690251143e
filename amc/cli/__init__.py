"""The command line: words to options to one call. The only place that prints."""
