"""lm-eval's tasks on a twin's engine: `adapter` answers its requests, `command` is `python -m jaxlm.harness`."""
