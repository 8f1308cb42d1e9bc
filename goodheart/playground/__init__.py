"""A small invented world whose true preferences a program knows: laboratory of the demo, the tests and experiments."""
