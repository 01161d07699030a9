"""The documents that a reader gives in pieces."""

EOT = "<|endoftext|>"


def documents(pieces) -> list[str]:
    """The documents that pieces make up."""
    whole, text = [], ""
    for piece in pieces:
        text += piece.text
        if piece.ends:
            whole.append(text)
            text = ""
    assert text == "", "the last document is not closed"
    return whole
