"""The ground floor: files, numbers, seeds, settings and messages. It knows nothing of inverse
problems."""
