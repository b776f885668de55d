"""Parts of the layer coverage benchmark: what is built, how it is made small and run, and what is checked."""
