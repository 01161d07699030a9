"""Speed code for a CPU: each function computes what a plain form outside of this folder says; a test compares the two.

The plain form is what runs where the fast one gains nothing, on other devices above all.
"""
