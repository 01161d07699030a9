"""The rungs. `parity.check.ladder.RUNGS` is the table of them; by number they are in

0 repeat, 1 and 2 inputs, 3 and 4 forward, 5 and 6 update, 7 trajectory (in two parts: instep, freerun),
8 decoding (with sampling), 9 transformers, 10 restart, 11 execution.
"""
