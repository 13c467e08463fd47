"""The vocabulary of the tokenizer that has one token for each letter between spaces."""

WORDS = {"</s>": 0, "<unk>": 1} | {letter: 2 + number for number, letter in enumerate("abcdefgh")}
BOS = SEPARATOR = 0
VOCAB = len(WORDS)
