"""What the page asks beside the API: facts about the model, and the attention weights of a text.

`GET /info` answers:

    {"model": "quickstart",          id of the model, for the field "model" of requests
     "package": "jaxlm",             the twin that serves it
     "parameters": 1064960,
     "n_layers": 4, "n_heads": 4,
     "vocab_size": 4096,
     "context": 256,                 maximum sum of prompt and generated tokens
     "chat": false,                  whether it has a chat template, so that /v1/chat/completions works
     "device": "cpu",
     "slots": 8,                     sequences that are decoded together
     "max_attention": 256,           maximum number of tokens of /attention
     "api_key": false,               whether requests need "Authorization: Bearer KEY"
     "sampling": {"prompt": "Once upon a time", "max_tokens": 256, "temperature": 0.7, "top_k": 0, "top_p": 1.0,
                  "min_p": 0.0, "seed": 0}}      the run's own defaults for samples

`POST /attention` takes `{"prompt": "text" or [token ids], "layer": 0, "head": 0}` and answers:

    {"tokens": ["Once", " upon"],    text of each token; the prompt begins as for /v1/completions
     "layer": 0, "head": 0,
     "weights": [[1.0, 0.0], [0.25, 0.75]]}      query position × key position, rounded to 4 decimals

Errors are `{"error": {"message": …, "type": …, "param": …, "code": …}}` with status 4xx or 5xx, as of the API.
"""
