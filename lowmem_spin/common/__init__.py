"""What every file may use: errors, keys, files, the display. Nothing here knows a recipe."""
