"""Flow maps, the losses whose minimiser they are, and the adapters that say where they begin."""
