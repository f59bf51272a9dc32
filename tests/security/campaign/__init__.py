"""Hostile files by the thousand: real ones and made ones, mutated, given to whatever reads such files, in a child with limits."""
