"""Anyone's port: run a JAX function and a torch module on the same weights and inputs, for `parity.compare`."""
