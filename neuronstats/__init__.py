"""What the FFN neurons of a language model do: dead, n-gram detecting, positional."""
