"""Speed code for a CPU: each function computes the same as a plain form outside of this folder; tests compare the two.

The plain form runs where the fast one gains nothing, above all on other devices.
"""
