"""Printing the steps of a command, one line each as it happens."""


def say(word: str, text: str) -> None:
    """Prints one step in two columns."""
    print(f"{word:<11} {text}".rstrip(), flush=True)
