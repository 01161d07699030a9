"""What `parity.match` is made of: words and layouts of parameters, their assignment, and the rows that it makes."""
