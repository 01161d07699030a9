"""An OpenAI-compatible server over a twin's engine: continuous batching, the API, the page, limits and metrics."""
