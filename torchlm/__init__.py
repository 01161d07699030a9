"""The language model in PyTorch: train, evaluate and generate. Its twin is `jaxlm`."""

import os
import sys

if sys.platform == "darwin":  # read when torch is first imported: what MPS lacks then runs on the CPU
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
