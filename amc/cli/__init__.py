"""The command line: words to options to one call. The only place that prints.

Options are made from the fields of the configuration (`options`); what is heavy is imported when a command runs.
"""
