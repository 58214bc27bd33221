"""The same as the command line, for notebooks and scripts: `import lowmem_spin as ls`."""
