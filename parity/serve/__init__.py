"""Both twins of one run side by side in a browser, token by token, with the verdict of the ladder."""
