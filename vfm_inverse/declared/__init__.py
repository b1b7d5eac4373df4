"""Problems that a settings file declares, without code."""
