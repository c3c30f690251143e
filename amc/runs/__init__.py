"""One search on disk: the run folder, its snapshot, and the runner that creates, resumes and finishes it."""
