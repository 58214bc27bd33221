"""From a file or the hub to token ids."""
