"""The language model in JAX: train, evaluate and generate. Its twin is `torchlm`."""
