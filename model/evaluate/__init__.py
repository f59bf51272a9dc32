"""Evaluation of frozen encoders: is this one better, by how much, and is that luck?"""
