"""Who plays the episodes: this process or Ray workers. Changes nothing but the time they take."""
